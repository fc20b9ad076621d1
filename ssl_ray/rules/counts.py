"""Rules of counts: images, clusters, tokens."""

from typing import Any

from ssl_ray.errors import UserError
from ssl_ray.rules.facts import Facts, Fitted


def queue_size(path: str, value: Any, facts: Facts) -> Fitted | None:
    """At most the number of images, in multiples of the global batch; 0 stays 0."""
    batch, images = facts.recipe.training.global_batch_size, facts.info.num_samples
    if not isinstance(value, int) or not value:  # no queue
        return None
    fitted = max(min(value, images) // batch, 1) * batch
    return fitted, f"{value} fitted to {images} images and the global batch of {batch}"


def num_samples(path: str, value: Any, facts: Facts) -> Fitted | None:
    """The number of images."""
    return facts.info.num_samples, "number of images"


def num_clusters(path: str, value: Any, facts: Facts) -> Fitted | None:
    """Raises UserError above the number of images."""
    if isinstance(value, int) and value > facts.info.num_samples:
        raise UserError(f"{path} {value} is more than the {facts.info.num_samples} images; lower it")
    return None


def num_tokens(path: str, value: Any, facts: Facts) -> Fitted | None:
    """The tokenizer's vocabulary. Raises UserError if it cannot be learned from so few patches."""
    tokens = facts.count("algorithm.tokenizer.num_tokens")
    of_each, images = facts.count("algorithm.tokenizer.patches_per_image"), facts.info.num_samples
    if tokens is not None and of_each is not None and tokens > images * of_each:
        raise UserError(
            f"algorithm.tokenizer.num_tokens {tokens} is more than {images} images x patches_per_image {of_each}; "
            "lower it, or raise algorithm.tokenizer.patches_per_image"
        )
    return None if tokens is None else (tokens, "algorithm.tokenizer.num_tokens")
