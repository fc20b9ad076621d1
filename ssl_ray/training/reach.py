"""Whether every node of a cluster sees the same files: asked before a run starts, not met in the middle of it.

A path on a disk means something on each node, and not the same: nothing, or another disk's folder of that name. So a
task on each node looks for a file of a random name that the driver has just written, and answers with one of its own;
and it reads an image that the driver has read.
"""

import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ssl_ray.data.labels import LabelledPart
from ssl_ray.data.sources.base import Source, Subset, digest, sample_indices
from ssl_ray.data.sources.location import EMBEDDED, Location, is_uri
from ssl_ray.data.sources.torchvision import TorchvisionSource
from ssl_ray.errors import UserError

# For all nodes together. What has not answered by then may be slow, or hang in a file system that is gone.
DEADLINE_S = 60.0
_ADVICE = {
    "data": "put the data on an NFS mount at the same path on every node, or into an object store "
    "(`ssl-ray data prepare DATA --out s3://...`)",
    "storage": "use --storage s3://..., or an NFS mount at the same path on every node",
    "out": "use --out s3://..., or an NFS mount at the same path on every node",
    "tracking": "rank 0 logs from whatever node it is on: set MLFLOW_TRACKING_URI to the http address of an MLflow "
    "server, or to sqlite:///FILE in a folder that all nodes share",
}


@dataclass(frozen=True)
class Folder:
    """A local folder that every node must read and write. option: the setting that names it."""

    option: str
    path: str
    token: str

    @property
    def probe(self) -> Path:
        """A hidden file of a random name."""
        return Path(self.path) / f".ssl-ray-{self.token}"


@dataclass(frozen=True)
class Images:
    """A source on a local disk, and the digest of a few of its images as the driver reads them."""

    path: str
    source: Source
    content: str
    option: str = "data"


Place = Folder | Images


def require(
    warn: Callable[[str], None],
    *,
    images: Iterable[Source | None] = (),
    storage: str | None = None,
    out: str | None = None,
    tracking: str | None = None,
) -> None:
    """Raises UserError unless every node that works sees what is on a local disk; `warn` hears of nodes without answer.

    images: data that nodes read. storage, out: folders (paths or URIs) that they write. tracking: MLflow's address, of
    which only a SQLite file matters. On a cluster of one node, and for what is in an object store or in this package,
    there is nothing to ask.
    """
    nodes = _working_nodes()
    if len(nodes) < 2:
        return
    database = (tracking or "").removeprefix("sqlite:///")
    kept = os.path.dirname(database) if database != (tracking or "") else None
    places = places_of(images, {"storage": storage, "out": out, "tracking": kept})
    if places:
        judge(places, _ask(places, nodes, warn), nodes)


def places_of(images: Iterable[Source | None], folders: Mapping[str, str | None]) -> list[Place]:
    """What of it is on a local disk. folders: by the option that names them."""
    places: list[Place] = [found for source in images if source is not None and (found := _images(source))]
    for option, path in folders.items():
        if path and (path.startswith("file://") or not is_uri(path)):
            places.append(Folder(option, Location.of(path).full_path, uuid.uuid4().hex))
    return places


def _working_nodes() -> dict[str, str]:
    """Node id -> name, of the driver's node and of those with CPUs."""
    here = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["NodeID"] == here)
    }


def _images(source: Source) -> Images | None:
    """None for what is in an object store or in this package."""
    whole = source
    while isinstance(whole, Subset | LabelledPart):
        whole = whole.source
    root = getattr(whole, "root", None)
    if isinstance(whole, TorchvisionSource):
        path = str(dict(whole.arguments).get("root", whole.path(0)))
    elif isinstance(root, Location) and root.is_local and not root.root.startswith(EMBEDDED):
        path = str(root)
    else:
        return None
    return Images(path, source, _content(source))


def _content(source: Source) -> str:
    return digest(*source.read(sample_indices(source.info.num_samples, 3)))


def _ask(
    places: Sequence[Place], nodes: dict[str, str], warn: Callable[[str], None]
) -> dict[str, list[str | None]]:
    """What is wrong with each place on each node that answers; None where nothing is."""
    look = ray.remote(_look)
    with ExitStack() as tidy:
        for place in places:
            if isinstance(place, Folder):
                _write_probe(place)
                tidy.callback(_remove, place)
        asked = ray.put(list(places))
        tasks = {
            look.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(asked, node): node
            for node in nodes
        }
        ready, silent = ray.wait(list(tasks), num_returns=len(tasks), timeout=DEADLINE_S)
        for task in silent:
            ray.cancel(task, force=True)
        if silent:
            names = ", ".join(nodes[tasks[task]] for task in silent)
            warn(
                f"no answer within {DEADLINE_S:g} s from {names}: whether the run's files are seen there is not known"
            )
        answers = {tasks[task]: _answer(task, len(places)) for task in ready}
        for node, wrong in answers.items():
            for i, place in enumerate(places):
                if wrong[i] is None and isinstance(place, Folder) and not reply(place, node).exists():
                    wrong[i] = "what is written there is not seen here"
    return answers


def _answer(task: Any, count: int) -> list[str | None]:
    try:
        found: list[str | None] = ray.get(task)
    except ray.exceptions.RayError as error:
        line = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no answer")
        return [f"cannot look: {line.strip()}"] * count
    return found


def _look(places: Sequence[Place], node: str) -> list[str | None]:
    """The task on a node. In threads: a file system that is gone holds up its own place only."""
    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(lambda place: trouble(place, node), places))


def trouble(place: Place, node: str) -> str | None:
    """What is wrong with a place, seen from here; None where nothing is, after answering the driver's probe."""
    try:
        if isinstance(place, Images):
            same = _content(place.source) == place.content
            return None if same else "other images, or none"
        if not place.probe.exists():
            return "another folder of that name" if os.path.isdir(place.path) else "no such folder"
        if place.probe.read_text() != place.token:
            return "another folder of that name"
        reply(place, node).write_text(place.token)
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else ""
        return f"{type(error).__name__}: {getattr(error, 'strerror', None) or line}"
    return None


def reply(folder: Folder, node: str) -> Path:
    """The file with which a node answers."""
    return folder.probe.with_name(f"{folder.probe.name}-{node}")


def _write_probe(folder: Folder) -> None:
    try:
        os.makedirs(folder.path, exist_ok=True)
        folder.probe.write_text(folder.token)
    except OSError as error:
        raise UserError(f"{folder.option}: {folder.path!r} cannot be written: {error.strerror}") from error


def _remove(folder: Folder) -> None:
    for file in folder.probe.parent.glob(f"{folder.probe.name}*"):
        file.unlink(missing_ok=True)


def judge(places: Sequence[Place], answers: dict[str, list[str | None]], nodes: dict[str, str]) -> None:
    """Raises UserError for the places that are not the same everywhere."""
    problems = []
    for i, place in enumerate(places):
        wrong = {nodes[node]: found for node, all_found in answers.items() if (found := all_found[i])}
        if wrong:
            shown = ", ".join(f"{name}: {found}" for name, found in list(wrong.items())[:5])
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            problems.append(
                f"{place.option}: {place.path} is not the same on all {len(nodes)} nodes of the cluster "
                f"({shown}{more}); {_ADVICE[place.option]}"
            )
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))
