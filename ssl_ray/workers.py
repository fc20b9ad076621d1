"""How many workers train: a number, or a range within which the cluster's room decides.

The global batch, its order and its micro-batches are the recipe's, whatever the number of workers: micro-batch i of
`training.accumulate` holds the same rows of the global batch, dealt to one worker or to sixteen. So a group that grows
or shrinks changes only who computes which rows. That must come out even: its size divides the micro-batch.
"""

import re
from dataclasses import dataclass

from ssl_ray.errors import UserError
from ssl_ray.recipe import Recipe


@dataclass(frozen=True)
class Workers:
    """At least and at most so many workers; the same number where the group is not elastic."""

    least: int
    most: int

    @classmethod
    def exactly(cls, count: int) -> "Workers":
        """A group of one size."""
        return cls(count, count)

    @classmethod
    def parse(cls, text: str) -> "Workers":
        """From "16" or "2..16". Raises UserError."""
        found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text.strip())
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise UserError(
                f"workers: got {text!r}; give a number such as 16, or a range such as 2..16 for a group that grows and "
                "shrinks with the cluster"
            )
        return cls(least, most)

    @property
    def elastic(self) -> bool:
        """Whether the group may grow and shrink."""
        return self.least < self.most

    def __str__(self) -> str:
        return f"{self.least}..{self.most}" if self.elastic else f"{self.least}"

    def sizes(self, recipe: Recipe) -> tuple[int, ...]:
        """Sizes that the group can have, ascending. Raises UserError where there is none.

        A range may hold sizes that do not divide the batch, a number may not.
        """
        batch, accumulate = recipe.training.global_batch_size, recipe.training.accumulate
        fitting = [w for w in range(1, batch // accumulate + 1) if batch % (w * accumulate) == 0]
        sizes = tuple(w for w in fitting if self.least <= w <= self.most)
        if not sizes:
            raise UserError(
                f"workers: {self} x training.accumulate {accumulate} does not divide training.global_batch_size "
                f"{batch}; workers may be {', '.join(map(str, fitting))}"
            )
        return sizes


def accumulation(recipe: Recipe, world_size: int) -> int:
    """Micro-batches of a step on so many workers: `training.accumulate`, or more to keep to `training.max_rows`.

    With fewer workers each has more rows; more micro-batches keep what it holds at once within its memory.
    """
    training = recipe.training
    rows = training.global_batch_size // world_size
    counts = (n for n in range(training.accumulate, rows + 1, training.accumulate) if rows % n == 0)
    return next(n for n in counts if training.max_rows is None or rows // n <= training.max_rows)
