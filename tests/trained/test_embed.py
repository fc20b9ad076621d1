"""What `ssl-ray embed` writes and reads back, without a cluster."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ssl_ray.console import Console
from ssl_ray.data.source import open_dataset
from ssl_ray.data.sources.base import Subset
from ssl_ray.data.sources.location import Location
from ssl_ray.errors import StoreError, UserError
from ssl_ray.evaluation.features import Extraction, tasks
from ssl_ray.trained.embed import METADATA, Request, _finished, _name, _part_rows, _Write, embed
from ssl_ray.trained.subject import load_subject
from tests.faulty_s3 import Fault, FaultyS3
from tests.trained.run_folder import write_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    write_run(storage, mlflow=False)
    return storage


@pytest.fixture(scope="module")
def extraction(storage: Path) -> Extraction:
    subject = load_subject("night", str(storage))
    source = Subset(open_dataset("digits", holdout=0).train, 0, 50)
    return Extraction(subject.encoder, subject.weights, source, 16, 8)


def plan(rows: int) -> list[dict[str, Any]]:
    return [
        {"split": "train", "part": part, "labels": None, **row} for part, row in enumerate(tasks(50, rows))
    ]


def write(extraction: Extraction, out: Location, dtype: str = "float32") -> list[dict[str, Any]]:
    job = _Write({"train": extraction}, out, dtype, 64, {"weights": "w"})
    job.start(CPU, 1)
    return [job.do(row) for row in plan(16)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-3)])
def test_parts_hold_the_features(
    extraction: Extraction, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    results = write(extraction, Location.of(tmp_path / "out"), dtype)
    assert [r["rows"] for r in results] == [16, 16, 16, 2]
    table = pq.read_table(tmp_path / "out")
    assert (
        str(table.schema.field("feature").type)
        == f"fixed_size_list<element: {'float' if dtype == 'float32' else 'halffloat'}>[64]"
    )
    assert table.column_names == ["index", "path", "feature"]  # no labels were given
    found = np.stack(table["feature"].to_pylist()).astype(np.float32)
    expected, index, _ = extraction.embed(0, 50, CPU, 1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=tolerance, atol=tolerance)
    assert table["index"].to_pylist() == index.tolist()


def test_what_is_not_finite_is_counted(extraction: Extraction, tmp_path: Path) -> None:
    class Diverged(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = images.float().flatten(1)[:, :64] + 1e5  # more than float16 holds
            features[0] = torch.nan  # the first of each batch of 8
            return features

    job = replace(extraction, encoder=Diverged())
    healthy = write(extraction, Location.of(tmp_path / "healthy"))
    assert [r["not_finite"] for r in healthy] == [0, 0, 0, 0]
    out = Location.of(tmp_path / "diverged")
    assert [r["not_finite"] for r in write(job, out)] == [2, 2, 2, 1]
    # Known again without making them again.
    said = io.StringIO()
    kept = _finished(out, plan(16), {"weights": "w"}, Console("normal", said, said))
    assert [kept[_name(row)]["not_finite"] for row in plan(16)] == [2, 2, 2, 1]
    half = write(job, Location.of(tmp_path / "half"), "float16")
    assert [r["not_finite"] for r in half] == [16, 16, 16, 2]


def test_on_an_object_store(extraction: Extraction, s3: tuple[Any, str], tmp_path: Path) -> None:
    client, query = s3
    out = Location.of(f"s3://pictures/deep/features?{query}")
    write(extraction, out)
    assert [path for path, _ in out.list(recursive=False)] == [
        f"train-{part:05d}.parquet" for part in range(4)
    ]
    there = pq.read_table("pictures/deep/features", filesystem=client)
    write(extraction, Location.of(tmp_path / "out"))
    assert there.equals(pq.read_table(tmp_path / "out"))
    found = _finished(out, plan(16), {"weights": "w"}, Console("quiet"))
    assert [found[_name(row)]["rows"] for row in plan(16)] == [16, 16, 16, 2]


def test_parts_are_written_whole_and_none_is_made_again_for_a_bad_day(
    extraction: Extraction, faulty: FaultyS3, tmp_path: Path
) -> None:
    out = Location.of(f"s3://pictures/features?{faulty.query}")
    faulty.plan(Fault("PUT .*train-00001", "cut", after=1000), Fault("PUT .*train-00002", "slow down", 2))
    write(extraction, out)
    assert len(faulty.met()) == 3
    faulty.plan(Fault("GET .*train-00001", "slow down", 2), Fault("GET .*train-00002", "short", after=10))
    assert len(_finished(out, plan(16), {"weights": "w"}, Console("quiet"))) == 4
    assert len(faulty.met()) == 3
    write(extraction, Location.of(tmp_path / "out"))
    for part in range(4):
        name = f"train-{part:05d}.parquet"
        assert (out / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    faulty.plan(Fault("GET .*train-00003", "denied", 99))
    with pytest.raises(StoreError, match="train-00003"):
        _finished(out, plan(16), {"weights": "w"}, Console("quiet"))


def test_only_whole_parts_of_the_same_features_count(extraction: Extraction, tmp_path: Path) -> None:
    out = Location.of(tmp_path / "out")
    write(extraction, out)
    cut = tmp_path / "out" / "train-00001.parquet"
    cut.write_bytes(cut.read_bytes()[:-20])
    said = io.StringIO()
    found = _finished(out, plan(16), {"weights": "w"}, Console("normal", said, said))
    assert sorted(found) == ["train-00000.parquet", "train-00002.parquet", "train-00003.parquet"]
    assert "train-00001.parquet is not whole; it is made again" in said.getvalue()
    assert _finished(out, plan(16), {"weights": "other"}, Console("quiet", said, said)) == {}


def test_broken_images_are_kept_with_the_part(extraction: Extraction, tmp_path: Path) -> None:
    class Holes(Subset):
        def read(self, indices: Any) -> list[bytes]:
            return [
                b"" if i % 16 < 15 else data for i, data in zip(indices, super().read(indices), strict=True)
            ]

    source = extraction.source
    holes = Extraction(extraction.encoder, "w", Holes(source.source, 0, 50), 16, 8)  # type: ignore[attr-defined]
    results = write(holes, Location.of(tmp_path / "out"))
    assert [r["rows"] for r in results] == [1, 1, 1, 0]
    assert len(json.loads(results[0]["broken"])) == 15
    assert pq.read_table(tmp_path / "out")["index"].to_pylist() == [15, 31, 47]
    found = _finished(Location.of(tmp_path / "out"), plan(16), {"weights": "w"}, Console("quiet"))
    assert sum(len(part["broken"]) for part in found.values()) == 47


def test_the_size_of_parts(extraction: Extraction) -> None:
    class Many:
        def __init__(self, n: int) -> None:
            self.info = type("Info", (), {"num_samples": n})()

    assert _part_rows(Many(10), 512, 256) == 256  # type: ignore[arg-type]
    assert _part_rows(Many(100_000), 512, 256) == 3072  # type: ignore[arg-type]
    assert _part_rows(Many(10**8), 512, 256) == 16384  # type: ignore[arg-type]  # 32 MiB of float32
    assert _part_rows(Many(10**8), 10**6, 256) == 256  # type: ignore[arg-type]


IDENTITY = {
    "weights": "w",
    "data": {},
    "image_size": 16,
    "crop_fraction": {},
    "features": 64,
    "dtype": "float32",
}


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({"notes.txt": "x"}, {}, r"holds other files \(notes\.txt\); give an empty folder"),
        ({METADATA: "{}"}, {}, r"was not written by `ssl-ray embed`"),
        (
            {
                METADATA: json.dumps(
                    {"format": "ssl-ray-features-1", "source": "moco, step 3 of x", "identity": IDENTITY}
                )
            },
            {},
            r"holds features of another network \(moco, step 3 of x\); give another --out",
        ),
        ({}, {"dtype": "float61"}, r"dtype: there is no 'float61'; did you mean 'float16'"),
        ({}, {"split": "vla"}, r"split: there is no 'vla'"),
        ({}, {"data": "{storage}/night"}, r"data: "),
        ({}, {"out": "s3://user:secret@bucket/x"}, r"out: .*\*\*\*.*holds credentials"),
    ],
)
def test_mistakes(
    storage: Path, tmp_path: Path, files: dict[str, str], options: dict[str, str], said: str
) -> None:
    (tmp_path / "out").mkdir()
    for name, text in files.items():
        (tmp_path / "out" / name).write_text(text)
    given = {name: value.format(storage=storage) for name, value in options.items()}
    request = Request(subject="night", storage=str(storage), **{"out": str(tmp_path / "out"), **given})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        embed(request, Console("quiet"))
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == files
