"""Where a run's images lie: kept so that it means the same from any folder, and found again when they have moved."""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote

from ssl_ray.data.source import EMBEDDED_SETS, Dataset, open_dataset
from ssl_ray.data.sources.location import is_uri
from ssl_ray.data.sources.torchvision import SCHEME
from ssl_ray.errors import UserError
from ssl_ray.job import in_copy

# Arguments of torchvision's data sets that are paths.
_PATHS = ("root", "annFile", "ann_file")


def lasting(uri: str, folder: str | None = None) -> str:
    """What `open_dataset` takes, with every local path in it absolute; relative ones begin in `folder`, or here.

    Here may be Ray's copy of what was submitted as a job, which is deleted with the job: what is relative to that stays
    so, for the next job has a copy of its own.
    """
    if uri.startswith(SCHEME):
        name, mark, query = uri.partition("?")
        return name + mark + "&".join(_absolute_argument(part, folder) for part in query.split("&"))
    return uri if uri in EMBEDDED_SETS or is_uri(uri) else _absolute(uri, folder)


def _absolute_argument(part: str, folder: str | None) -> str:
    for key, value in parse_qsl(part):
        if key in _PATHS and (path := _absolute(value, folder)) != value:
            return f"{key}={quote(path, safe='/~')}"
    return part


def _absolute(path: str, folder: str | None) -> str:
    path = os.path.expanduser(path)
    if folder is None and in_copy() and not os.path.isabs(path):
        return path
    return os.path.normpath(os.path.join(folder or os.getcwd(), path))


def recorded(record: Mapping[str, Any]) -> str:
    """Where the record of a run says that its images lie.

    Earlier versions wrote what was typed: a relative path begins where the command ran, the first folder of the run's
    python_path, or in this folder if there is nothing.
    """
    data = str(record["data"])
    for folder in record.get("python_path", [])[:1]:
        if (begun := lasting(data, folder)) != data and exists(begun):
            return begun
    return lasting(data)


def exists(place: str) -> bool:
    """Whether there is something at a local path; True for what is none."""
    if place.startswith(SCHEME):
        return all(
            os.path.exists(value) for key, value in parse_qsl(place.partition("?")[2]) if key in _PATHS
        )
    return place in EMBEDDED_SETS or is_uri(place) or os.path.exists(place)


def is_own(record: Mapping[str, Any], data: str, dataset: Dataset) -> bool:
    """Whether these are the images that a run was trained on, where they were or at another place."""
    same = dataset.train.info.digest == record.get("dataset_digest")
    return "data" in record and (same or lasting(data) == recorded(record))


def reopen(name: str, record: Mapping[str, Any], given: str | None, again: str) -> tuple[str, Dataset]:
    """The images that a run or search began with, and where they are now.

    given: where the user says that they are; by default they are where the record says. again: the command that says
    where they are, up to the place itself. Raises UserError where there is nothing, or other images.
    """
    place = recorded(record) if given is None else lasting(given)
    require(name, place, given, again)
    dataset = open_dataset(place, holdout=record["holdout"], **record["columns"])
    check_data(name, record, dataset, place, given)
    return place, dataset


def require(name: str, place: str, given: str | None, again: str) -> None:
    """Raises UserError where the images of a run are no longer at the place that its record names."""
    if given is None and not exists(place):
        raise UserError(
            f"data: no such file or folder: {place!r}, the images of {name!r}; if they moved, say where they are now: "
            f"{again} --data PLACE"
        )


def check_data(
    name: str, record: Mapping[str, Any], dataset: Dataset, place: str, given: str | None = None
) -> None:
    """Raises UserError unless a run began with these images, wherever they lay. given: as of `reopen`."""
    if dataset.train.info.digest != record["dataset_digest"]:
        differs = (
            f"is not what run {name!r} began with" if given else f"is not what it was when run {name!r} began"
        )
        raise UserError(
            f"data: {place} {differs} (digest {dataset.train.info.digest}, was {record['dataset_digest']}); put the "
            "images back, say with --data where they are, or start a new run"
        )
