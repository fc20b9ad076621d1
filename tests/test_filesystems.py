"""The door to object stores, against an S3 server behind a proxy that has bad days."""

import pickle
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from ssl_ray import filesystems
from ssl_ray.errors import StoreError, UserError
from ssl_ray.filesystems import ATTEMPTS, open_uri, upload
from tests.faulty_s3 import Fault, FaultyS3

CONTENT = random.Random(0).randbytes(300_000)
GET, LIST = "GET /pictures/a/file", r"GET /pictures\?list-type"


def store(proxy: FaultyS3, path: str = "") -> tuple[Any, str]:
    return open_uri(f"s3://pictures/{path}?{proxy.query}")


@pytest.fixture
def file(faulty: FaultyS3, s3: tuple[Any, str]) -> tuple[Any, str]:
    """The file system through the proxy, and an object in it."""
    put(s3[0], "pictures/a/file", CONTENT)
    return store(faulty, "a/file")


def put(filesystem: Any, path: str, content: bytes) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)


def get(filesystem: Any, path: str) -> bytes:
    with filesystem.open_input_file(path) as stream:
        return bytes(stream.read())


# Reads


@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        (Fault(GET, "slow down", 2), 3),
        (Fault(GET, "internal error", 3), 4),
        (Fault(GET, "silence"), 2),
        (Fault(GET, "cut", after=0), 2),
        (Fault(GET, "cut", 2, after=1000), 3),
        (Fault(GET, "long"), 2),
        (Fault(GET, "short", after=1000), 2),
        (Fault(GET, "short", after=299_999), 2),
        (Fault(GET, "short", 3, after=0), 4),
    ],
    ids=lambda value: f"{value.kind} {value.after}" if isinstance(value, Fault) else "",
)
def test_a_file_is_read_whole(file: tuple[Any, str], faulty: FaultyS3, fault: Fault, requests: int) -> None:
    times = fault.times
    faulty.plan(fault)
    assert get(*file) == CONTENT
    assert faulty.met() == [fault.kind] * times
    assert faulty.count(GET) == requests


@pytest.mark.parametrize("kind", ["cut", "short"])
def test_a_range_is_read_whole(file: tuple[Any, str], faulty: FaultyS3, kind: Any) -> None:
    filesystem, path = file
    faulty.plan(Fault(GET, kind, after=100))
    with filesystem.open_input_file(path) as stream:
        stream.seek(1234)
        assert stream.read(5000) == CONTENT[1234:6234]
        assert stream.tell() == 6234
        assert stream.read_at(50, len(CONTENT) - 20) == CONTENT[-20:]  # no more than there is
        assert stream.read_at(50, len(CONTENT)) == b""
    assert faulty.count(GET) == 3


def test_a_refusal_longer_than_what_was_asked_for(file: tuple[Any, str], faulty: FaultyS3) -> None:
    """Such as the length of a footer: pyarrow alone gives up."""
    filesystem, path = file
    faulty.plan(Fault(GET, "slow down", 2), Fault(GET, "internal error", 2))
    with filesystem.open_input_file(path) as stream:
        assert stream.read(8) == CONTENT[:8]
    assert faulty.count(GET) == 5


def test_pyarrow_alone_takes_a_short_answer_for_a_whole_one(file: tuple[Any, str], faulty: FaultyS3) -> None:
    """Why reads are checked. When this fails pyarrow has learned it, and `CheckedReader` may go."""
    client, path = fs.FileSystem.from_uri(f"s3://pictures/a/file?{faulty.query}")
    faulty.plan(Fault(GET, "short", after=1000))
    # Of the length that was asked for, though 1000 bytes came: the rest is what lay in memory, by chance the content.
    assert len(get(client, path)) == len(CONTENT)
    assert faulty.met() == ["short"]
    assert faulty.count(GET) == 1


@pytest.mark.parametrize(("last", "requests"), [(b"\xa5", 2), (b"\x5a", 1), (b"", 0)])
def test_a_file_that_ends_as_a_short_answer_would(
    s3: Any, faulty: FaultyS3, last: bytes, requests: int
) -> None:
    put(s3[0], "pictures/a/file", 99 * last + last)
    assert get(*store(faulty, "a/file")) == 99 * last + last
    assert faulty.count(GET) == requests


def test_many_readers_of_a_store_that_slows_down(
    s3: tuple[Any, str], faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is refused four times, 128 times in all: more than AWS's standard strategy would bear."""
    monkeypatch.setattr(filesystems, "REQUEST_RETRIES", 5)
    names = [f"pictures/a/{i:02d}" for i in range(32)]
    for name in names:
        put(s3[0], name, CONTENT[:1000])
    filesystem, _ = store(faulty)
    faulty.plan(*(Fault(f"GET /{name}", "slow down", 4) for name in names))
    with ThreadPoolExecutor(32) as pool:
        read = list(pool.map(lambda name: get(filesystem, name), names))
    assert read == [CONTENT[:1000]] * 32
    assert faulty.count("GET") == 32 * 5


@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        (Fault(LIST, "slow down", 2), 3),
        (Fault(LIST, "short", after=200), 2),
        (Fault(LIST, "cut", after=100), 2),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_a_listing_is_whole(file: tuple[Any, str], faulty: FaultyS3, fault: Fault, requests: int) -> None:
    faulty.plan(fault)
    (found,) = file[0].get_file_info(fs.FileSelector("pictures/a", recursive=True))
    assert (found.path, found.size) == ("pictures/a/file", len(CONTENT))
    assert faulty.count(LIST) == requests


def test_looking_for_a_file_of_a_store_that_slows_down(file: tuple[Any, str], faulty: FaultyS3) -> None:
    faulty.plan(Fault("HEAD", "slow down", 2))
    assert file[0].get_file_info(file[1]).size == len(CONTENT)
    assert len(faulty.requests) == 3


# What does not pass


@pytest.mark.parametrize(
    ("kind", "requests", "said"),
    [
        ("slow down", 4, r"AWS Error S.* \(tried 4 times\); check the endpoint and the network"),
        ("silence", 4, r"AWS Error NETWORK_CONNECTION.* \(tried 4 times\); check the endpoint"),
        (
            "short",
            2 * ATTEMPTS,
            r"the answer is not whole: 300,000 bytes from 0 on .*\(tried 8 times\); check",
        ),
        (
            "denied",
            1,
            r"ACCESS_DENIED.*; access denied; give credentials that may do this, in the environment",
        ),
    ],
)
def test_a_fault_that_stays_is_one_line(
    file: tuple[Any, str], faulty: FaultyS3, kind: Any, requests: int, said: str
) -> None:
    faulty.plan(Fault(GET, kind, 99, after=10))
    with pytest.raises(StoreError, match=rf"^s3://pictures/a/file: .*{said}") as caught:
        get(*file)
    assert "\n" not in str(caught.value)
    assert faulty.count(GET) == requests


def test_what_is_not_there_is_said_at_once(file: tuple[Any, str], faulty: FaultyS3) -> None:
    filesystem, _ = file
    faulty.plan()
    with pytest.raises(FileNotFoundError):
        get(filesystem, "pictures/nothing")
    assert len(faulty.requests) == 1
    with pytest.raises(
        StoreError, match=r"s3://pictured/a: .*NO_SUCH_BUCKET.*there is no such bucket; check its name"
    ):
        filesystem.get_file_info(fs.FileSelector("pictured/a"))
    assert len(faulty.requests) == 2


# Writes


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "slow down", 2),
        Fault("PUT", "cut", after=0),
        Fault("PUT", "cut", after=100_000),
        Fault("POST .*uploadId", "internal error", 2),
    ],
    ids=lambda fault: f"{fault.kind} {fault.after}",
)
def test_a_file_is_written_whole(s3: tuple[Any, str], faulty: FaultyS3, fault: Fault) -> None:
    content = 41 * CONTENT  # parts of 10 MB
    filesystem, path = store(faulty, "b/file")
    times = fault.times
    faulty.plan(fault)
    put(filesystem, path, content)
    assert faulty.met() == [fault.kind] * times
    assert get(s3[0], path) == content


def test_a_write_that_fails_leaves_what_was_there(
    file: tuple[Any, str], s3: tuple[Any, str], faulty: FaultyS3
) -> None:
    faulty.plan(Fault("PUT", "cut", 99))
    with pytest.raises(OSError, match="AWS Error"):
        put(*file, b"other")
    assert len(faulty.met()) == 4
    assert get(s3[0], "pictures/a/file") == CONTENT


def test_folders_travel_whole_in_both_directions(
    s3: tuple[Any, str], faulty: FaultyS3, tmp_path: Path
) -> None:
    """As a checkpoint does; there are more files than threads, which must not wait for one another."""
    (tmp_path / "up").mkdir()
    (tmp_path / "down").mkdir()
    for i in range(20):
        (tmp_path / "up" / str(i)).write_bytes(CONTENT[i:])
    filesystem, path = store(faulty, "checkpoint")
    faulty.plan(
        Fault("PUT .*checkpoint/7", "cut", 2, after=1000), Fault("PUT .*checkpoint/8", "slow down", 2)
    )
    upload(str(tmp_path / "up"), filesystem, path)
    assert len(faulty.met()) == 4
    faulty.plan(
        Fault("GET .*/7", "cut", 2, after=1000),
        Fault("GET .*/8", "short", after=10),
        Fault(LIST, "slow down"),
    )
    fs.copy_files(path, str(tmp_path / "down"), source_filesystem=filesystem)
    assert len(faulty.met()) == 4
    assert [(tmp_path / "down" / str(i)).read_bytes() == CONTENT[i:] for i in range(20)] == [True] * 20


@pytest.mark.parametrize("kind", ["denied", "cut"])
def test_an_upload_that_fails_is_not_silent(faulty: FaultyS3, tmp_path: Path, kind: Any) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(CONTENT)
    filesystem, path = store(faulty, "checkpoint")
    faulty.plan(Fault("PUT .*checkpoint.pt", kind, 99))
    with pytest.raises(OSError, match=r"UploadPart"):
        upload(str(tmp_path), filesystem, path)


def test_pyarrow_alone_is_silent_about_an_upload_that_fails(
    s3: tuple[Any, str], faulty: FaultyS3, tmp_path: Path
) -> None:
    """Why `upload` is there, and why Ray Train is given it. When this fails both may go."""
    (tmp_path / "checkpoint.pt").write_bytes(CONTENT)
    client, path = fs.FileSystem.from_uri(f"s3://pictures/checkpoint?{faulty.query}")
    faulty.plan(Fault("PUT .*checkpoint.pt", "denied", 99))
    fs.copy_files(str(tmp_path), path, destination_filesystem=client)
    assert s3[0].get_file_info(f"{path}/checkpoint.pt").type == fs.FileType.NotFound


# The door


def test_a_file_system_travels_without_credentials_and_keeps_its_patience(
    file: tuple[Any, str], faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, path = file
    pickled = pickle.dumps(filesystem)
    assert b"secret" not in pickled
    filesystems._client.cache_clear()  # as in another process
    copy = pickle.loads(pickled)
    assert copy == filesystem
    assert copy != fs.LocalFileSystem()
    faulty.plan(Fault(GET, "slow down", 3))
    assert get(copy, path) == CONTENT


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", ""), ("/", ""), ("/a", "/a"), ("/a/", "/a"), ("/a%20b/%C3%BC", "/a b/ü"), ("/a+b/x=1", "/a+b/x=1")],
)
def test_paths_are_those_of_pyarrow(path: str, expected: str) -> None:
    uri = f"s3://bucket{path}?region=us-east-1"
    assert open_uri(uri)[1] == f"bucket{expected}" == fs.FileSystem.from_uri(uri)[1]


def test_other_file_systems_are_pyarrows(tmp_path: Path) -> None:
    assert open_uri(str(tmp_path)) == (fs.LocalFileSystem(), str(tmp_path))
    assert open_uri(f"file://{tmp_path}") == (fs.LocalFileSystem(), str(tmp_path))
    store, path = open_uri("gs://anonymous@bucket/a")
    assert path == "bucket/a"
    assert store.__reduce__()[1][0]["retry_time_limit"].total_seconds() == 60
    with pytest.raises(pa.ArrowInvalid, match="endpoint_overide"):
        open_uri("s3://bucket/a?endpoint_overide=x")


@pytest.mark.parametrize("secret", ["wJalr/K7MDENG", "wJalrK7MDENG"])
@pytest.mark.parametrize("scheme", ["s3", "gs", "hdfs"])
def test_a_uri_with_a_password_is_refused(secret: str, scheme: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{scheme}://***@bucket/a holds credentials")) as caught:
        open_uri(f"{scheme}://AKIAKEY:{secret}@bucket/a")
    assert "wJalr" not in str(caught.value)
    assert "AKIA" not in str(caught.value)
