"""Data on an object store that has bad days: the same bytes as from local files, whatever kind of source."""

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_ray.data.prepare import prepare
from ssl_ray.data.source import Source, open_dataset
from ssl_ray.errors import StoreError, UserError
from ssl_ray.filesystems import ATTEMPTS
from tests.faulty_s3 import Fault, FaultyS3

COUNT = 40
SHARD = 300_000  # bytes: three shards of two batches each
# What each source meets while it is opened and read; every request of a kind once it is its turn.
BAD_DAY = [
    lambda: Fault("GET", "slow down", 2),
    lambda: Fault("GET", "cut", after=70),
    lambda: Fault("GET", "short", after=70),
    lambda: Fault("GET", "internal error"),
    lambda: Fault("HEAD", "slow down", 2),
    lambda: Fault("GET", "long"),
]


def encoded(seed: int) -> bytes:
    """A PNG of 19 kB."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (80, 80, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [encoded(i) for i in range(COUNT)]


@pytest.fixture
def uris(images: list[bytes], s3: tuple[Any, str], tmp_path: Path) -> dict[str, str]:
    """The images as each kind of source: name -> path in the bucket."""
    client, query = s3
    for i, image in enumerate(images):
        with client.open_output_stream(f"pictures/folder/{'ab'[i % 2]}/{i:02d}.png") as stream:
            stream.write(image)
    table = pa.table({"image": images, "label": [i % 2 for i in range(COUNT)]})
    with client.open_output_stream("pictures/tables/x.parquet") as stream:
        pq.write_table(table, stream, row_group_size=10)
    pq.write_table(table, tmp_path / "x.parquet")
    prepare(
        open_dataset(str(tmp_path / "x.parquet"), holdout=0).train,
        f"s3://pictures/shards?{query}",
        shard_bytes=SHARD,
    )
    return {name: f"s3://pictures/{name}" for name in ("folder", "tables", "shards")}


def content(source: Source) -> list[bytes]:
    """All images, out of order, in two reads."""
    order = np.random.default_rng(0).permutation(COUNT)
    read = source.read(order[:30]) + source.read(order[30:])
    return [read[i] for i in np.argsort(order)]


@pytest.mark.parametrize("kind", ["folder", "tables", "shards"])
def test_every_source_gives_the_bytes_that_are_there(
    uris: dict[str, str], faulty: FaultyS3, images: list[bytes], kind: str
) -> None:
    expected = images[::2] + images[1::2] if kind == "folder" else images
    uri = f"{uris[kind]}?{faulty.query}"
    faulty.plan(*(make() for make in BAD_DAY))
    source = open_dataset(uri, holdout=0).train
    assert source.labels() is not None
    assert content(source) == expected
    met = faulty.met()
    assert sorted(met) == sorted(["slow down"] * 4 + ["cut", "short", "internal error", "long"])

    faulty.plan(*(make() for make in BAD_DAY[:4]))  # now that all is open: only images are read
    assert content(open_dataset(uri, holdout=0).train if kind == "tables" else source) == expected
    assert len(faulty.met()) == 5


@pytest.mark.parametrize("kind", ["folder", "tables", "shards"])
def test_a_source_that_cannot_be_read_says_so_in_one_line(
    uris: dict[str, str], faulty: FaultyS3, kind: str
) -> None:
    uri = f"{uris[kind]}?{faulty.query}"
    faulty.plan(Fault(".", "denied", 99))
    with pytest.raises(
        UserError, match=rf"^data: s3://pictures/{kind}.*ACCESS_DENIED.*; access denied; give"
    ) as caught:
        open_dataset(uri)
    assert "\n" not in str(caught.value)
    assert len(faulty.requests) == 1
    faulty.plan()
    source = open_dataset(uri, holdout=0).train
    faulty.plan(Fault("GET", "slow down", 99))
    # A shard is opened with a read of a few bytes, less than the refusal has.
    tries = ATTEMPTS if kind == "shards" else 4
    with pytest.raises(
        StoreError, match=rf"s3://pictures/{kind}/.*\(tried {tries} times\); check the endpoint"
    ):
        source.read(np.array([37]))
    assert faulty.count("GET") == tries


def test_shards_are_written_whole_and_continued(
    uris: dict[str, str], faulty: FaultyS3, images: list[bytes]
) -> None:
    source = open_dataset(f"{uris['folder']}?{faulty.query}", holdout=0).train
    out = f"s3://pictures/packed?{faulty.query}"
    faulty.plan(Fault("PUT .*shard-00001", "cut", 99))
    with pytest.raises(OSError, match="AWS Error"):
        prepare(source, out, shard_bytes=SHARD)
    with pytest.raises(UserError):
        open_dataset(out)
    faulty.plan(
        Fault("PUT", "slow down", 2),
        Fault("PUT .*shard-00001", "cut", after=500),
        Fault("PUT .*index", "internal error"),
        Fault("GET .*shard-00000", "short", after=5),
    )
    done = prepare(source, out, shard_bytes=SHARD)
    assert len(faulty.met()) == 5
    assert done.shards_written == done.num_shards - 1
    assert content(open_dataset(out, holdout=0).train) == images[::2] + images[1::2]


def test_shards_are_read_many_at_a_time(uris: dict[str, str], faulty: FaultyS3) -> None:
    source = open_dataset(f"{uris['shards']}?{faulty.query}", holdout=0).train
    read = faulty.choose
    together = threading.Barrier(2)

    def choose(request: str) -> Fault | None:
        if "GET" in request:
            together.wait(20)  # broken unless two requests are under way at once
        return read(request)

    faulty.choose = choose  # type: ignore[method-assign]
    source.read(np.arange(2 * (COUNT // 2)))
