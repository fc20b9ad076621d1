"""A hold on a run from another thread of its driver: a search's, which judges the run while it trains."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Control:
    """Asks a run to stop, and hears of its evaluations.

    stop: set it, and the run ends with a checkpoint at its next look, as after one Ctrl-C. on_evaluation: called with
    each online evaluation, in the run's thread. With a control a run ends, by whatever, only when Ray Train has given
    back its workers: the driver's process lives on, and nobody else would.
    """

    on_evaluation: Callable[[dict[str, float]], None]
    stop: threading.Event = field(default_factory=threading.Event)
