"""Runs that fail: each has to end with status 2 and the reason in its last line, and leave no process behind.

Of each kind several, by turns: a gradient that stays infinite, a mistake of the user's that a worker meets, an
exception in a worker, too many broken images. A driver that leaves Ray while something of its own still talks to it
crashes now and then only, so one run of a kind shows nothing.

    python benchmarks/failing_runs.py [--runs 20] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from startup import MARK, Watch, named

RECIPE = """
from dataclasses import replace

from ssl_ray.errors import UserError
from ssl_ray.experiments import load
from ssl_ray.models import SimCLR
from ssl_ray.spec import Spec


class Fails(SimCLR):
    error = RuntimeError

    def before_step(self, progress):
        super().before_step(progress)
        if progress.step == 1:
            raise self.error("the second step of this recipe always fails")


class Mistaken(Fails):
    error = UserError


simclr = load("simclr").SMALL
FAILS, MISTAKEN = (replace(simclr, algorithm=Spec(cls, **simclr.algorithm.kwargs)) for cls in (Fails, Mistaken))
"""
TINY = [
    "--steps=12",
    "--set=views.size=16",
    "--set=algorithm.backbone.width=8",
    "--set=algorithm.neck.in_channels=64",
    "--set=training.global_batch_size=16",
    "--set=training.log_steps=1",
    "--set=evaluation.every_epochs=none",
]


@dataclass(frozen=True)
class Kind:
    """A kind of failure: what to type, and what the last line has to say."""

    name: str
    arguments: tuple[str, ...]
    reason: str


KINDS = (
    Kind(
        "gradient not finite",
        ("simclr", "--scale=small", "--data=digits", "--set=optimization.base_lr=1e30"),
        "the gradient is not finite since step ",
    ),
    Kind(
        "mistake in a worker",
        ("fails.py:MISTAKEN", "--data=digits"),
        "the second step of this recipe always fails",
    ),
    Kind(
        "exception in a worker",
        ("fails.py:FAILS", "--data=digits"),
        "RuntimeError: the second step of this recipe always fails",
    ),
    Kind("broken images", ("simclr", "--scale=small", "--data=broken"), "data.max_broken: "),
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended. told: the last line has the reason, and so has the run's error.txt. left: processes of it."""

    kind: str
    status: int
    told: bool
    left: int
    seconds: float
    last: str

    @property
    def right(self) -> bool:
        """As it should be."""
        return self.status == 2 and self.told and not self.left


def prepare(folder: Path) -> None:
    """A recipe that fails, and images of which every other cannot be read."""
    (folder / "fails.py").write_text(RECIPE)
    (folder / "broken").mkdir()
    rng = np.random.default_rng(0)
    for i in range(64):
        image = cv2.imencode(".png", rng.integers(0, 256, (24, 24, 3), np.uint8))[1].tobytes()
        (folder / "broken" / f"{i:02}.png").write_bytes(image if i % 2 else image[: len(image) // 2])


def fail(kind: Kind, folder: Path, name: str, arguments: tuple[str, ...] = ()) -> Outcome:
    """Runs the command to its end, in a prepared folder."""
    started = time.monotonic()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ssl_ray.cli",
            "pretrain",
            *kind.arguments,
            *TINY,
            f"--name={name}",
            *arguments,
        ],
        cwd=folder,
        env=os.environ | {"HOME": str(folder), MARK: f"{folder}/{name}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    watch = watched(process, f"{folder}/{name}")
    _, said = process.communicate()
    last = (said.splitlines() or [""])[-1]
    file = folder / "runs" / name / "error.txt"
    kept = file.read_text() if file.exists() else ""
    told = last.startswith("ssl-ray: ") and kind.reason in last and kind.reason in kept
    left = len(left_of(watch))
    return Outcome(kind.name, process.returncode, told, left, round(time.monotonic() - started, 1), last)


def watched(process: "subprocess.Popen[str]", mark: str) -> Watch:
    """Keeps track of a command's processes from here on, also of those that no longer look like its own."""
    watch = Watch(f"{MARK}={mark}".encode(), process.pid, memory=False)
    watch.start()
    return watch


def left_of(watch: Watch) -> list[str]:
    """Names of the processes that outlive their command."""
    watch.done.set()
    watch.join()
    return [named(pid) for pid in watch.look()]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="failing") as made:
        folder = Path(made)
        prepare(folder)
        for i in range(asked.runs):
            outcome = fail(KINDS[i % len(KINDS)], folder, f"run{i}")
            outcomes.append(outcome)
            if not asked.json:
                print(
                    f"{outcome.kind:22} status {outcome.status:3}  told {'yes' if outcome.told else 'NO':3}  "
                    f"left {outcome.left}  {outcome.seconds:5.1f} s  {outcome.last[:100]}",
                    flush=True,
                )
    right = sum(outcome.right for outcome in outcomes)
    if asked.json:
        print(
            json.dumps({"runs": len(outcomes), "right": right, "outcomes": [asdict(one) for one in outcomes]})
        )
    else:
        print(f"{right} of {len(outcomes)} ended with status 2, the reason, and no process left")
    sys.exit(right < len(outcomes))


if __name__ == "__main__":
    main()
