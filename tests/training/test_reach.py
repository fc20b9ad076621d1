"""A path that means something else on another node is found out. Another node's disks: a mount namespace."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_ray.data.source import Subset, open_dataset
from ssl_ray.errors import UserError
from ssl_ray.training.reach import Folder, Images, Place, judge, places_of, reply, require
from tests.data.photos import encode, patch
from tests.nodes.cluster import UNSHARE, no_namespaces

elsewhere = pytest.mark.skipif(bool(no_namespaces()), reason=f"no mount namespace: {no_namespaces()}")

LOOK = """
import pickle, sys
from ssl_ray.training.reach import trouble

print(trouble(pickle.load(open(sys.argv[1], "rb")), "there"))
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "disk" / "photos"
    folder.mkdir(parents=True)
    for i in range(5):
        (folder / f"{i}.png").write_bytes(encode(patch(size=32 + i), "PNG"))
    return folder


def seen(place: Place, tmp_path: Path, mount: str = "true") -> str:
    """What is wrong with a place on a node where `mount`, a line of shell, has been done."""
    (tmp_path / "place").write_bytes(pickle.dumps(place))
    look = [*UNSHARE, "sh", "-c", f'{mount} && exec "$@"', "-", sys.executable, "-c", LOOK]
    done = subprocess.run([*look, tmp_path / "place"], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


@pytest.mark.process
@elsewhere
def test_a_folder_seen_from_elsewhere(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    folder = Folder("storage", str(disk / "runs"), "token")
    (disk / "runs").mkdir(parents=True)
    folder.probe.write_text("token")
    assert seen(folder, tmp_path) == "None"
    assert reply(folder, "there").read_text() == "token"
    reply(folder, "there").unlink()
    for mount, found in (
        (f"mount -t tmpfs none {disk}", "no such folder"),
        (f"mount -t tmpfs none {disk / 'runs'}", "another folder of that name"),
        (f"mount --bind {disk} {disk} && mount -o remount,ro,bind {disk}", "OSError: Read-only file system"),
    ):
        assert seen(folder, tmp_path, mount) == found
    assert not reply(folder, "there").exists()


@pytest.mark.process
@elsewhere
def test_images_seen_from_elsewhere(tmp_path: Path, photos: Path) -> None:
    part = Subset(open_dataset(str(photos)).train, 1, 4, shuffled=True)
    (images,) = places_of([part], {})
    assert isinstance(images, Images)
    assert images.path == str(photos)
    assert seen(images, tmp_path) == "None"
    other = tmp_path / "other"
    other.mkdir()
    for i in range(5):
        (other / f"{i}.png").write_bytes(encode(patch("china.jpg", size=32 + i), "PNG"))
    for mount in (f"mount -t tmpfs none {photos}", f"mount --bind {other} {photos}"):
        assert seen(images, tmp_path, mount) == "other images, or none"


def test_only_what_is_on_a_disk_is_asked_for(tmp_path: Path) -> None:
    for name in ("fashion", "digits"):
        dataset = open_dataset(name)
        assert places_of([dataset.train, dataset.val], {"storage": "s3://bucket/runs", "out": None}) == []
    (place,) = places_of([], {"storage": str(tmp_path)})
    assert place == Folder("storage", str(tmp_path), place.token)


def test_all_that_is_wrong_is_said_in_one_line() -> None:
    places = [Folder("storage", "/runs", "a"), Folder("tracking", "/home", "b"), Folder("out", "/out", "c")]
    nodes = {"1": "here", "2": "gpu-1", "3": "gpu-2"}
    answers: dict[str, list[str | None]] = {
        "1": [None, None, None],
        "2": ["no such folder", None, None],
        "3": ["no such folder", "other", None],
    }
    with pytest.raises(UserError) as caught:
        judge(places, answers, nodes)
    first, second = str(caught.value).split("; tracking: ")
    assert first.startswith(
        "storage: /runs is not the same on all 3 nodes of the cluster (gpu-1: no such folder, gpu-2: no such folder); "
        "use --storage s3://"
    )
    assert second.startswith(
        "/home is not the same on all 3 nodes of the cluster (gpu-2: other); rank 0 logs from"
    )
    assert "\n" not in str(caught.value)
    judge(places, {"1": [None, None, None]}, nodes)


def test_one_node_has_nothing_to_ask(ray_cluster: None, tmp_path: Path, photos: Path) -> None:
    require(pytest.fail, images=[open_dataset(str(photos)).train], storage=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
