"""A run's folder: on an object store that fails now and then, and where no run comes of it."""

import pickle
from pathlib import Path

import pytest
import ray.train

from ssl_ray import experiments
from ssl_ray.errors import UserError
from ssl_ray.filesystems import open_uri
from ssl_ray.training.folder import CHECKPOINTS, MARKER, RUN, NoRun, RunFolder
from ssl_ray.training.trained import load_trained
from tests.faulty_s3 import Fault, FaultyS3


@pytest.fixture
def folder(faulty: FaultyS3) -> RunFolder:
    return RunFolder.at(f"s3://pictures/runs?{faulty.query}", "night")


def test_a_record_is_written_and_read_whole(folder: RunFolder, faulty: FaultyS3) -> None:
    record = {"name": "night", "values": list(range(1000))}
    faulty.plan(Fault("PUT", "slow down", 2), Fault("PUT", "cut", after=100))
    folder.create()
    folder.write(RUN, record)
    assert faulty.met() == ["slow down", "slow down", "cut"]
    faulty.plan(
        Fault("HEAD", "internal error"),
        Fault("GET", "slow down"),
        Fault("GET", "cut", after=10),
        Fault("GET", "short", after=10),
    )
    assert folder.exists()
    assert folder.record() == record
    assert len(faulty.met()) == 4
    folder.update(summary={"steps": 3})
    assert RunFolder.find("night", folder.storage).record() == record | {"summary": {"steps": 3}}


def test_a_write_that_is_cut_off_leaves_the_record_that_was_there(
    folder: RunFolder, faulty: FaultyS3
) -> None:
    folder.write(RUN, {"name": "night"})
    faulty.plan(Fault("PUT", "cut", 99))
    with pytest.raises(
        UserError, match=r"storage: 'night' in 's3://pictures/runs.*cannot be read or written: .*AWS"
    ):
        folder.update(summary={})
    faulty.plan()
    assert folder.record() == {"name": "night"}


def test_what_is_forbidden_is_not_taken_for_missing(folder: RunFolder, faulty: FaultyS3) -> None:
    with pytest.raises(NoRun):
        RunFolder.find("night", folder.storage)
    faulty.plan(Fault(".", "denied", 99))
    for call in (
        lambda: RunFolder.find("night", folder.storage),
        lambda: load_trained("night", folder.storage),
    ):
        with pytest.raises(
            UserError, match=r"^storage: s3://pictures/runs/night/run.json: .*; access denied; give cred"
        ):
            call()
    assert len(faulty.requests) == 2


def test_a_checkpoint_comes_back_whole(folder: RunFolder, faulty: FaultyS3) -> None:
    """By Ray Train's own hands, in another process than the one that opened the store."""
    content = bytes(range(256)) * 1000
    folder.below("checkpoint_1").keep("checkpoint.pt", content)
    folder.write(
        CHECKPOINTS, {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1", "metrics": {"step": 7}}]}
    )
    assert folder.latest_checkpoint(from_step=8) is None
    uri = folder.latest_checkpoint()
    assert uri == f"s3://pictures/runs/night/checkpoint_1?{faulty.query}"
    filesystem, path = open_uri(uri)
    checkpoint = pickle.loads(pickle.dumps(ray.train.Checkpoint(path, filesystem)))
    faulty.plan(
        Fault("GET .*checkpoint.pt", "cut", after=10),
        Fault("GET .*checkpoint.pt", "short", after=10),
        Fault("list-type", "slow down"),
    )
    with checkpoint.as_directory() as directory:
        assert Path(directory, "checkpoint.pt").read_bytes() == content
    assert len(faulty.met()) == 3


def test_what_never_began_leaves_nothing(tmp_path: Path) -> None:
    """Ray Train makes the folder, and what is above it, as soon as it starts."""
    folder = RunFolder.at(str(tmp_path / "some" / "runs"), "run")
    with pytest.raises(UserError, match="MLflow"), folder.undone_unless_begun():  # noqa: PT012
        folder.create()
        folder.keep(MARKER, b"")
        raise UserError("MLflow is away")
    assert not list(tmp_path.iterdir())


def test_what_others_keep_there_stays(tmp_path: Path) -> None:
    folder = RunFolder.at(str(tmp_path / "runs"), "run")
    folder.keep("notes.txt", b"mine")
    with pytest.raises(UserError), folder.undone_unless_begun():  # noqa: PT012
        folder.keep(MARKER, b"")
        raise UserError("MLflow is away")
    assert [path.name for path in (tmp_path / "runs" / "run").iterdir()] == ["notes.txt"]


def test_a_run_that_began_stays(tmp_path: Path) -> None:
    folder = RunFolder.at(str(tmp_path / "runs"), "run")
    with pytest.raises(UserError), folder.undone_unless_begun():  # noqa: PT012
        folder.keep(MARKER, b"")
        folder.begin(experiments.load("simclr").SMALL, {"name": "run"})
        raise UserError("a worker failed")
    assert folder.exists()
    assert folder.holds(MARKER)
