"""What a search is worth: a recipe with a planted learning rate, as it is and tuned, for the same number of epochs.

The recipe is SMALL of an algorithm with optimization.base_lr set to a value that is far off. Untuned, it trains for
`--epochs` epochs, and once for `--trials` times as many: more than the search can take. `ssl-ray tune` then searches
base_lr in `--trials` trials of at most `--epochs` epochs; the trial-epochs that it took are printed. The held-out
images choose the best trial, so its best.json is trained once more with a seed that the search did not see.

    python benchmarks/tuning.py [NAME] [--data fashion] [--bad-lr 1e-5] [--epochs 4] [--trials 6] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ssl_ray.console import Console

PATH = "optimization.base_lr"


def ssl_ray(folder: Path, *arguments: str) -> dict[str, Any]:
    """The summary that a verb of the real command ends with."""
    done = subprocess.run(
        [sys.executable, "-m", "ssl_ray.cli", *arguments, "--json", f"--storage={folder}"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"},
        check=False,
    )
    if done.returncode:
        sys.exit(f"ssl-ray {' '.join(arguments)} ended with status {done.returncode}")
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", default="moco")
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--bad-lr", type=float, default=1e-5)
    parser.add_argument("--space", default="loguniform(1e-5, 1e-1)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="path=value, for all runs alike")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()
    common = [f"--data={arguments.data}", *(f"--set={text}" for text in arguments.set)]
    bad = [*common, "--scale=small", f"--set={PATH}={arguments.bad_lr}"]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        once = [
            f"--set=training.epochs={arguments.epochs}",
            f"--set=evaluation.every_epochs={arguments.epochs}",
        ]
        untuned = ssl_ray(folder, "pretrain", arguments.name, *bad, *once, "--name=untuned")
        longer = arguments.trials * arguments.epochs
        long = [f"--set=training.epochs={longer}", f"--set=evaluation.every_epochs={longer}"]
        untuned_longer = ssl_ray(folder, "pretrain", arguments.name, *bad, *long, "--name=longer")
        search = ssl_ray(
            folder,
            *("tune", arguments.name, *bad, f"--search={PATH}={arguments.space}", "--name=search"),
            *(f"--trials={arguments.trials}", f"--max-epochs={arguments.epochs}", f"--seed={arguments.seed}"),
        )
        tuned = ssl_ray(
            folder, "pretrain", search["best_recipe"], f"--data={arguments.data}", "--seed=1", "--name=tuned"
        )
    evaluations = untuned["evaluations"]
    best = next(t for t in search["trials"] if t["run"] == search["best"]["run"])
    result = {
        "algorithm": arguments.name,
        "data": arguments.data,
        "epochs": arguments.epochs,
        "raw_pixels": evaluations[0].get("baseline/raw_pixels_knn_top1"),
        "untrained": evaluations[0]["val/knn_top1"],
        "planted_lr": arguments.bad_lr,
        "untuned": evaluations[-1]["val/knn_top1"],
        "untuned_longer": untuned_longer["evaluations"][-1]["val/knn_top1"],
        "tuned_lr": best["values"][PATH],
        "tuned": search["best"]["score"],
        "tuned_new_seed": tuned["evaluations"][-1]["val/knn_top1"],
        "trials": len(search["trials"]),
        "trial_epochs": search["trial_epochs"],
        "trial_epochs_without_stopping": arguments.trials * arguments.epochs,
        "search_minutes": round(search["seconds"] / 60, 1),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    console = Console()
    if arguments.json:
        console.json_line(result)
        return
    console.table(
        f"{arguments.name} on {arguments.data}, {arguments.epochs} epochs",
        ["recipe", "base_lr", "kNN top-1 %"],
        [
            ("raw pixels", None, f"{100 * float(result['raw_pixels'] or 0):.1f}"),
            ("untrained", None, f"{100 * result['untrained']:.1f}"),
            ("planted rate", f"{arguments.bad_lr:.3g}", f"{100 * result['untuned']:.1f}"),
            (
                f"planted rate, {longer} epochs",
                f"{arguments.bad_lr:.3g}",
                f"{100 * result['untuned_longer']:.1f}",
            ),
            ("tuned", f"{result['tuned_lr']:.3g}", f"{100 * result['tuned']:.1f}"),
            ("tuned, new seed", f"{result['tuned_lr']:.3g}", f"{100 * result['tuned_new_seed']:.1f}"),
        ],
    )
    console.print(
        f"{result['trials']} trials, {result['trial_epochs']:g} trial-epochs of "
        f"{result['trial_epochs_without_stopping']} without stopping, {result['search_minutes']} min"
    )


if __name__ == "__main__":
    main()
