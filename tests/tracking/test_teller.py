"""What a driver makes of what it is told."""

import io
from pathlib import Path
from typing import Any

from ssl_ray.console import Console
from ssl_ray.tracking import TrackingSettings, make_tracker, open_run
from ssl_ray.tracking.client import connect
from ssl_ray.training.events import Flush, Metrics
from ssl_ray.training.folder import RunFolder
from ssl_ray.training.result import RunResult
from ssl_ray.training.teller import Teller


def test_metrics_are_kept_with_their_steps_and_times(settings: TrackingSettings, tmp_path: Path) -> None:
    """After a `Flush` they are in the store: a rank saves a checkpoint then, and a kill loses none of them."""
    target = open_run(settings, name="run", params={}, tags={}).target
    console = Console("quiet", out=io.StringIO(), err=io.StringIO())
    with make_tracker(target) as tracker, console.progress(3, "run") as progress:
        folder = RunFolder.at(str(tmp_path), "run")
        teller = Teller(RunResult("finished"), tracker, folder, console, progress, None, lambda: None)

        def stored(name: str) -> list[tuple[Any, ...]]:
            history = connect(target.uri).get_metric_history(target.run_id, name)
            return [(metric.step, metric.value, metric.timestamp) for metric in history]

        teller.tell(Metrics({"train/loss": 2.0, "train/lr": 0.1}, 1, 1_700_000_000_000))
        teller.tell(Metrics({"train/loss": 1.5}, 2, 1_700_000_001_000))
        teller.tell(Flush())
        assert stored("train/loss") == [(1, 2.0, 1_700_000_000_000), (2, 1.5, 1_700_000_001_000)]
        assert stored("train/lr") == [(1, 0.1, 1_700_000_000_000)]
