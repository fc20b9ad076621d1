"""Gradients that train nothing: of exactly 0, whatever the cause, and those that are not finite."""

from collections.abc import Callable

from ssl_ray.errors import UserError
from ssl_ray.training.step import Step

# So many steps in a row of exactly 0 are worth a word. One may happen: a batch that is known by heart.
ZERO_STEPS = 3


class GradientMonitor:
    """Is told of every step. send: gets a warning for each step that was skipped, and one for a standstill.

    max_nonfinite_steps: so many skipped steps in a row end the run.
    """

    def __init__(self, send: Callable[[str], None], max_nonfinite_steps: int) -> None:
        self.send, self.max_nonfinite_steps = send, max_nonfinite_steps
        self.skipped = self.zero = 0  # in a row
        self.said = False

    def __call__(self, step: int, done: Step) -> None:
        """step: number of steps, this one included. Raises UserError where the run has to end."""
        self.skipped = 0 if done.taken else self.skipped + 1
        if not done.taken:
            loss = done.metrics["loss"]
            self.send(f"step {step}: the gradient is not finite (loss {loss:.4g}); step skipped")
        if self.skipped >= self.max_nonfinite_steps:
            raise UserError(
                f"the gradient is not finite since step {step + 1 - self.skipped} ({self.skipped} steps in a row); "
                "lower optimization.base_lr, lengthen optimization.warmup_epochs or set "
                "optimization.clip_grad_norm, and start again; the last checkpoint is from before"
            )
        self.zero = self.zero + 1 if done.zero else 0
        if self.zero >= ZERO_STEPS and not self.said:
            self.said = True
            self.send(
                f"the gradient is exactly 0 since step {step + 1 - ZERO_STEPS} ({ZERO_STEPS} steps in a row): nothing "
                "is learned; see whether the loss reaches the backbone, and whether training.global_batch_size leaves "
                "it anything to tell apart"
            )
