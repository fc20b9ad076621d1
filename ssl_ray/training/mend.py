"""Ray Train writes its list of a run's checkpoints in place: a crash or a full disk can leave half of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import ray
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)

from ssl_ray.training import checkpoint
from ssl_ray.training.folder import CHECKPOINTS, RunFolder


def mend(folder: RunFolder, warn: Callable[[str], None]) -> None:
    """`mend_list` of a run, with a word; before anybody asks for its checkpoints."""
    if folder.local and (count := mend_list(folder.local)) is not None:
        warn(f"{folder.uri}: its list of checkpoints was cut off; made anew from the {count} that are there")


def mend_list(folder: Path) -> int | None:
    """Writes the list anew where it is broken, from the checkpoints in the run's folder, oldest first.

    Returns how many there are, None where nothing was broken. A checkpoint has its name only when it is whole. In an
    object store an object is whole or not there: no need.
    """
    path = folder / CHECKPOINTS
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    else:
        return None
    named = [(path, re.fullmatch(r"checkpoint_(\d+)_\w+", path.name)) for path in folder.iterdir()]
    found = [(path, int(match[1])) for path, match in named if match and (path / checkpoint.FILE).exists()]
    found.sort(key=lambda entry: entry[0].stat().st_mtime_ns)
    results = [
        _TrainingResultState(checkpoint_dir_name=path.name, metrics={"step": step}) for path, step in found
    ]
    state = _CheckpointManagerState(
        ray_version=ray.__version__,
        checkpoint_results=results,
        checkpoint_report_indices=list(range(len(results))),
        latest_checkpoint_result=results[-1] if results else None,
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(results),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    whole = path.with_suffix(".tmp")
    whole.write_text(state.model_dump_json())
    whole.replace(path)
    return len(results)
