"""Gradients of exactly 0: whatever the cause, a run that has nothing but these trains nothing."""

# One may happen: a batch that is known by heart.
STEPS = 3


class Standstill:
    """Is told of every step, and says once where the gradient has been exactly 0 for several in a row."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self.said = False

    def __call__(self, step: int, zero: bool) -> str | None:
        """step: number of steps taken, this one included. Returns a warning, or None."""
        self.in_a_row = self.in_a_row + 1 if zero else 0
        if self.said or self.in_a_row < STEPS:
            return None
        self.said = True
        return (
            f"the gradient is exactly 0 since step {step + 1 - STEPS} ({STEPS} steps in a row): nothing is learned; "
            "see whether the loss reaches the backbone, and whether training.global_batch_size leaves it anything to "
            "tell apart"
        )
