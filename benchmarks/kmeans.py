"""Time and inertia of our k-means, scikit-learn's, and faiss's where it is installed, on the same rows in one process.

All run Lloyd's algorithm, as many iterations at most: ours and scikit-learn's from greedy k-means++ seeds, faiss from
random ones, as DeepCluster uses it, on all rows. Rounds take turns, each with a seed of its own; figures are medians
over rounds. Rows are a mixture of Gaussians, of unit length, as DeepCluster's are.

    python benchmarks/kmeans.py [--rows 20000] [--dim 64] [--clusters 100] [--threads 1] [--json]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ssl_ray.models.clustering.kmeans import kmeans

Contender = Callable[[Tensor, int, int, int], float]
"""From rows, clusters, iterations and seed to the inertia."""


def mixture(rows: int, dim: int, centres: int) -> Tensor:
    """Rows of unit length around `centres` directions."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(centres, dim, generator=generator)
    around = means[torch.randint(centres, (rows,), generator=generator)]
    return torch.nn.functional.normalize(around + torch.randn(rows, dim, generator=generator), dim=1)


def ours(rows: Tensor, clusters: int, iterations: int, seed: int) -> float:
    return kmeans(rows, clusters, seed=seed, iterations=iterations).inertia


def sklearn(rows: Tensor, clusters: int, iterations: int, seed: int) -> float:
    from sklearn.cluster import KMeans

    # tol 0: it may stop early where nothing moves, as ours does, and not before.
    found = KMeans(clusters, n_init=1, max_iter=iterations, tol=0, random_state=seed).fit(rows.numpy())
    return float(found.inertia_)


def faiss(rows: Tensor, clusters: int, iterations: int, seed: int) -> float:
    from faiss import Kmeans  # type: ignore[import-not-found,unused-ignore]

    found = Kmeans(
        rows.shape[1], clusters, niter=iterations, seed=seed + 1, max_points_per_centroid=len(rows)
    )
    found.train(rows.numpy())
    squared, _ = found.index.search(rows.numpy(), 1)
    return float(squared.sum())


def installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def measure(
    contenders: dict[str, Contender], rows: Tensor, clusters: int, iterations: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds of wall-clock time and inertia of each, and both divided by scikit-learn's."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    inertia: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run(rows[: 2 * clusters], clusters, 1, 0)
    for seed in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            inertia[name].append(run(rows, clusters, iterations, seed))
            seconds[name].append(time.perf_counter() - start)
    median = {n: (statistics.median(seconds[n]), statistics.median(inertia[n])) for n in contenders}
    base = median["scikit-learn"]
    return {
        n: {
            "seconds": round(s, 4),
            "inertia": round(i, 3),
            "time_ratio": round(s / base[0], 3),
            "inertia_ratio": round(i / base[1], 4),
        }
        for n, (s, i) in median.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    if args.rows < 2 * args.clusters:
        raise SystemExit(
            f"--rows {args.rows}: at least twice --clusters {args.clusters} for the first, short run"
        )
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn has it

    torch.set_num_threads(args.threads)
    contenders: dict[str, Contender] = {"ssl-ray": ours, "scikit-learn": sklearn}
    packages = ["torch", "numpy", "scikit-learn"]
    if faiss_package := next((p for p in ("faiss-cpu", "faiss-gpu") if installed(p)), None):
        contenders["faiss"] = faiss
        packages.append(faiss_package)
    rows = mixture(args.rows, args.dim, centres=2 * args.clusters)
    with threadpool_limits(args.threads):
        figures = measure(contenders, rows, args.clusters, args.iterations, args.rounds)
    result: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()} {platform.release()}",
        "versions": {p: version(p) for p in packages},
        **{
            name: getattr(args, name)
            for name in ("rows", "dim", "clusters", "iterations", "rounds", "threads")
        },
        "kmeans": figures,
    }
    print(f"{result['machine']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}")
    print(
        f"{args.rows} x {args.dim}, {args.clusters} clusters, {args.iterations} iterations, {args.threads} thread(s)"
    )
    print(f"{'':16}{'seconds':>10}{'ratio':>8}{'inertia':>14}{'ratio':>8}")
    for name, f in figures.items():
        print(
            f"{name:16}{f['seconds']:10.3f}{f['time_ratio']:8.2f}{f['inertia']:14.1f}{f['inertia_ratio']:8.4f}"
        )
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
