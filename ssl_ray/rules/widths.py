"""Rules of widths: what one part gives is what the next one takes."""

from typing import Any

from ssl_ray.paths import value_at
from ssl_ray.rules.facts import Facts, Fitted


def feature_dim(path: str, value: Any, facts: Facts) -> Fitted | None:
    """The backbone's, where it says so."""
    width = facts.of_backbone("feature_dim")
    return None if value is None or width is None else (width, "what the backbone gives")


def neck_in_channels(path: str, value: Any, facts: Facts) -> Fitted | None:
    """The backbone's, unless the neck has another name for it."""
    # A decoder of tokens calls their width embed_dim; its in_channels are those of the image.
    of_image = value_at(facts.recipe, "algorithm.neck.embed_dim") is not None
    return None if of_image else feature_dim(path, value, facts)


def projection_dim(path: str, value: Any, facts: Facts) -> Fitted | None:
    """What the neck gives, or the backbone where no neck changes it."""
    if value is None:
        return None
    width = facts.count("algorithm.neck.out_channels")
    if width is not None:
        return width, "algorithm.neck.out_channels"
    neck = (value_at(facts.recipe, f"algorithm.neck.{name}") for name in ("embed_dim", "in_channels"))
    # A neck with a width has one of its own making; one without, such as a pooling, keeps the backbone's.
    return None if any(width is not None for width in neck) else feature_dim(path, value, facts)
