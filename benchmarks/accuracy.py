"""What every algorithm's SMALL recipe learns: kNN and linear accuracy before and after, speed, memory, minutes.

Each runs as users run it, `ssl-ray pretrain NAME`, for its recipe's epochs (or --epochs), and is judged once at its
last epoch; nothing is chosen by looking at the held-out images on the way. Both protocols are the same for all: plain
views, pooled features of the backbone. kNN: k = 20, temperature 0.07, weighted, cosine. Linear: logistic regression
(L-BFGS, C = 1) on standardised features.

    python benchmarks/accuracy.py [NAME ...] [--data fashion] [--epochs N] [--seed 0] [--curves PNG] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from ssl_ray import experiments
from ssl_ray.console import Console
from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.evaluation.images import PlainImages
from ssl_ray.models.base import BaseModel
from ssl_ray.recipe import Recipe
from ssl_ray.training import checkpoint

COLUMNS = (
    "algorithm",
    "raw kNN",
    "kNN before",
    "kNN after",
    "linear before",
    "linear after",
    "views/s",
    "MB",
    "min",
)


class PeakMemory(threading.Thread):
    """Largest resident memory of the training worker, looked up twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.bytes, self.done = pid, 0, threading.Event()

    def run(self) -> None:
        """Until `done` is set."""
        while not self.done.wait(0.5):
            try:
                for process in psutil.Process(self.pid).children(recursive=True):
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        self.bytes = max(self.bytes, process.memory_info().rss)
            except psutil.Error:
                continue


def pretrain(name: str, data: str, folder: Path, options: list[str]) -> tuple[dict[str, Any], int]:
    """What the run says of itself, and the training worker's peak memory in bytes."""
    command = [sys.executable, "-m", "ssl_ray.cli", "pretrain", name, f"--data={data}", f"--storage={folder}"]
    process = subprocess.Popen(
        [*command, "--scale=small", f"--name={name}", "--json", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"},
    )
    memory = PeakMemory(process.pid)
    memory.start()
    out, _ = process.communicate()
    memory.done.set()
    if process.returncode:
        sys.exit(f"{name} ended with status {process.returncode}")
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary, memory.bytes


@torch.inference_mode()
def features(algorithm: BaseModel, images: PlainImages) -> tuple[Tensor, Tensor]:
    """Pooled features (n, D) and labels (n,)."""
    algorithm.eval()
    embedded, indices = zip(
        *((algorithm.embed([view]), index) for view, index in images.batches()), strict=True
    )
    labels = images.source.labels()
    assert labels is not None, "the benchmark needs labels"
    return torch.cat(embedded), torch.from_numpy(labels)[torch.cat(indices)]


def linear_accuracy(algorithm: BaseModel, dataset: Dataset, size: int) -> float:
    """Top-1 of logistic regression on features, in 0..1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert dataset.val is not None, "the benchmark needs a held-out split"
    train, val = (
        features(algorithm, PlainImages(source, size, None, 256, {}))
        for source in (dataset.train, dataset.val)
    )
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=3000))
    probe.fit(train[0].numpy(), train[1].numpy())
    return float(probe.score(val[0].numpy(), val[1].numpy()))


def measure(name: str, data: str, dataset: Dataset, folder: Path, options: list[str]) -> dict[str, Any]:
    """One algorithm's row, and its curve: [[epoch, kNN], ...]."""
    started = time.monotonic()
    summary, memory = pretrain(name, data, folder, options)
    recipe = Recipe.from_json(json.loads((folder / name / "recipe.json").read_text()))
    pipeline = recipe.views.build()
    torch.manual_seed(recipe.training.seed)
    algorithm: BaseModel = recipe.algorithm.build()
    untrained = linear_accuracy(algorithm, dataset, pipeline.eval_size)
    algorithm.load_state_dict(checkpoint.load(summary["checkpoint"])["algorithm"])
    judged = summary["evaluations"]
    return {
        "algorithm": name,
        "epochs": recipe.training.epochs,
        "seed": recipe.training.seed,
        "raw_pixels_knn": judged[0].get("baseline/raw_pixels_knn_top1"),
        "knn_untrained": judged[0]["val/knn_top1"],
        "knn": judged[-1]["val/knn_top1"],
        "linear_untrained": untrained,
        "linear": linear_accuracy(algorithm, dataset, pipeline.eval_size),
        "views_per_second": summary["images_per_second"] * len(pipeline.sizes),
        "peak_memory_mb": memory / 2**20,
        "minutes": summary["seconds"] / 60,
        "total_minutes": (time.monotonic() - started) / 60,
        "curve": [[e["epoch"], e["val/knn_top1"]] for e in judged],
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """KNN by epoch, a panel per algorithm, against raw pixels."""
    from matplotlib.figure import Figure

    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.4 * columns + 0.6, 1.9 * lines + 0.6), dpi=120, layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for panel, row in zip(panels, rows, strict=False):
        epochs, knn = zip(*row["curve"], strict=True)
        panel.plot(epochs, [100 * k for k in knn], "o-", markersize=3)
        if (raw := row["raw_pixels_knn"]) is not None:
            panel.axhline(100 * raw, color="gray", linestyle="--", linewidth=1)
        panel.set_title(f"{row['algorithm']} {100 * knn[-1]:.1f}", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    for panel in panels[len(rows) :]:
        panel.remove()
    figure.supxlabel("epoch (0: the untrained network)", fontsize=9)
    figure.supylabel("kNN top-1 % on held-out images (dashed: raw pixels)", fontsize=9)
    figure.savefig(path)


def main() -> None:
    """Runs the algorithms one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="algorithms; all when none is named")
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curves", type=Path, help="where to draw kNN by epoch, a PNG")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    console = Console("quiet" if arguments.json else "normal")
    dataset = open_dataset(arguments.data)
    options = [f"--seed={arguments.seed}", *([f"--epochs={arguments.epochs}"] if arguments.epochs else [])]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or experiments.names():
            rows.append(row := measure(name, arguments.data, dataset, Path(folder), options))
            print(
                f"{name}: kNN {100 * row['knn_untrained']:.1f} -> {100 * row['knn']:.1f} %, linear "
                f"{100 * row['linear_untrained']:.1f} -> {100 * row['linear']:.1f} %, {row['minutes']:.1f} min",
                file=sys.stderr,
                flush=True,
            )
    if arguments.curves:
        plot(rows, arguments.curves)
    console.table(
        f"{arguments.data}, seed {arguments.seed}: top-1 % on held-out images",
        COLUMNS,
        [
            (
                row["algorithm"],
                *(
                    None if row[key] is None else f"{100 * row[key]:.1f}"
                    for key in ("raw_pixels_knn", "knn_untrained", "knn", "linear_untrained", "linear")
                ),
                f"{row['views_per_second']:,.0f}",
                f"{row['peak_memory_mb']:,.0f}",
                f"{row['minutes']:.1f}",
            )
            for row in rows
        ],
    )
    if arguments.json:
        print(json.dumps({row.pop("algorithm"): row for row in rows}))


if __name__ == "__main__":
    main()
