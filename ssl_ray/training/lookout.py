"""Every other second the ranks look up from their work together, and do what has to be done by all of them at once."""

import time

from ssl_ray import distributed
from ssl_ray.training.context import WorkerContext

# A look costs a message to an actor and two small collectives: little against this, and soon enough for a person who
# has pressed Ctrl-C, or for a spot node of whose end there is half a minute's notice.
LOOK_S = 2.0


class Lookout:
    """Called after each step by every rank; answers the same on all: (stop now, save a checkpoint now).

    A look is due after as many steps as take LOOK_S seconds by rank 0's clock. minutes: between checkpoints, None for
    never. A node that is about to be taken away (spot, drained) is a reason to save at once.
    """

    def __init__(self, context: WorkerContext, first_step: int, minutes: float | None) -> None:
        self.context, self.minutes = context, minutes
        self.looked_at, self.next_look = first_step, first_step + 1
        self.looked = self.last_save = time.monotonic()
        self.saved = False

    def __call__(self, step: int) -> tuple[bool, bool]:
        """step: how many are done."""
        if step < self.next_look:
            return False, False
        now, stop, save, ahead = time.monotonic(), False, False, 1
        if self.context.rank == 0:
            stop, save = self.context.poll(self.saved)
            save = save or (self.minutes is not None and now - self.last_save > 60 * self.minutes)
            ahead = max(1, int(LOOK_S * (step - self.looked_at) / max(now - self.looked, 1e-6)))
        stops, saves, ahead = distributed.agree(stop, save, ahead)
        self.looked, self.looked_at, self.next_look, self.saved = now, step, step + ahead, False

        if notice := self.context.preemption_notice():
            saves = 1
            if self.context.rank == 0:
                self.context.send(notice)
        return bool(stops), bool(saves)

    def has_saved(self) -> None:
        """To be called after each checkpoint."""
        self.saved, self.last_save = True, time.monotonic()
