"""What rules ask, and what they answer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ssl_ray.errors import MISTAKES, UserError
from ssl_ray.paths import build_at, value_at
from ssl_ray.recipe import Recipe
from ssl_ray.spec import Spec

if TYPE_CHECKING:
    from ssl_ray.data.source import DatasetInfo


@dataclass(frozen=True)
class Facts:
    """What rules ask about a recipe, as far as it is fitted. Sizes are in pixels; None stands for what it has not."""

    recipe: Recipe
    info: "DatasetInfo"

    def count(self, path: str) -> int | None:
        """The whole number at a path."""
        value = value_at(self.recipe, path)
        return value if isinstance(value, int) else None

    @property
    def view_size(self) -> int | None:
        """Side of the views."""
        return self.count("views.size")

    @property
    def patch_size(self) -> int | None:
        """Side of the backbone's patches."""
        return self.count("algorithm.backbone.patch_size")

    @property
    def side(self) -> int | None:
        """Patches along a side of a view."""
        size, patch = self.view_size, self.patch_size
        return None if size is None or patch is None or patch < 1 else size // patch

    @cached_property
    def backbone(self) -> object:
        """The backbone, without memory; None if it cannot be built so."""
        from ssl_ray.models.meta import without_memory

        spec = self.recipe.algorithm.kwargs.get("backbone")
        if not isinstance(spec, Spec) or spec.missing():
            return None
        try:
            with without_memory():
                return build_at(spec, "algorithm.backbone", UserError)
        except UserError:
            raise
        except MISTAKES:  # a user's module may ask for the values of its tensors
            return None

    def of_backbone(self, name: str) -> int | None:
        """A whole number that the backbone says about itself."""
        value = getattr(self.backbone, name, None)
        return value if isinstance(value, int) else None


Fitted = tuple[Any, str]
"""The value that an argument gets, and where it is from."""
Rule = Callable[[str, Any, Facts], Fitted | None]
"""From an argument's path and value; None leaves it as it is."""
