import os
import pickle

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_ray.data.decode import decode
from ssl_ray.data.prepare import prepare, prepare_dataset
from ssl_ray.data.source import open_dataset
from ssl_ray.data.sources.location import Location
from ssl_ray.errors import UserError
from tests.data.test_source import encoded, write_folder
from tests.data.tiffs import RGB, tiff


@pytest.fixture
def folder(tmp_path):
    return open_dataset(str(write_folder(tmp_path / "in", {"cat": 30, "dog": 20})), holdout=0).train


def noise(seed: int, height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def test_round_trip(folder, tmp_path):
    progress = []
    done = prepare(
        folder, str(tmp_path / "out"), shard_bytes=1, on_progress=lambda n, total: progress.append((n, total))
    )
    assert (done.num_samples, done.num_shards, done.shards_written, done.broken) == (50, 1, 1, ())
    assert progress == [(50, 50)]  # Tiny images share a record batch, and a batch is never cut.
    shards = open_dataset(str(tmp_path / "out"), holdout=0).train
    assert shards.info == folder.info
    order = np.random.default_rng(0).permutation(50)
    assert shards.read(order) == folder.read(order)
    assert np.array_equal(shards.labels(), folder.labels())
    assert [shards.path(i) for i in (0, 49)] == [folder.path(i) for i in (0, 49)]
    copy = pickle.loads(pickle.dumps(shards))
    assert len(pickle.dumps(shards)) < 2000
    assert copy.read(np.array([17])) == folder.read(np.array([17]))
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith(".tmp")]


@pytest.mark.parametrize("rows", [16, 100])  # in groups, or all in one as earlier versions wrote it
def test_an_image_is_named_by_its_row_group_of_the_index(folder, tmp_path, monkeypatch, rows):
    monkeypatch.setattr("ssl_ray.data.packer.INDEX_ROWS", rows)
    prepare(folder, str(tmp_path / "out"))
    index = pq.ParquetFile(tmp_path / "out" / "index.parquet")
    groups = [index.metadata.row_group(i).num_rows for i in range(index.num_row_groups)]
    assert groups == ([16, 16, 16, 2] if rows == 16 else [50])
    assert index.read()["index"].to_pylist() == list(range(50))
    assert index.read()["label"].to_pylist() == [0] * 30 + [1] * 20
    read = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: read.append(a[1]) or whole(*a, **k))
    shards = open_dataset(str(tmp_path / "out"), holdout=0).train
    assert [shards.path(i) for i in (40, 33, 0, 49)] == [folder.path(i) for i in (40, 33, 0, 49)]
    assert read == ([2, 0, 3] if rows == 16 else [0])


def test_a_shard_is_readable_by_arrow_alone(folder, tmp_path):
    prepare(folder, str(tmp_path / "out"))
    table = pa.ipc.open_file(tmp_path / "out" / "shard-00000.arrow").read_all()
    assert table.column_names == ["index", "image", "label", "path"]
    assert table["index"].to_pylist() == list(range(50))
    assert table["image"].to_pylist() == folder.read(np.arange(50))
    assert table["label"].to_pylist() == [0] * 30 + [1] * 20


def large_folder(root, count=40):
    """Images of some 60 kB, so that a shard has several record batches."""
    root.mkdir()
    for i in range(count):
        (root / f"{i:02d}.png").write_bytes(cv2.imencode(".png", noise(i, 120, 160))[1].tobytes())
    return open_dataset(str(root)).train


def test_many_shards_do_not_depend_on_the_workers_and_a_stopped_run_continues(tmp_path):
    source = large_folder(tmp_path / "in")
    done = prepare(source, str(tmp_path / "a"), shard_bytes=400_000, workers=1)
    assert done.num_shards > 3
    prepare(source, str(tmp_path / "b"), shard_bytes=400_000, workers=4)
    names = sorted(os.listdir(tmp_path / "a"))
    assert names == sorted(os.listdir(tmp_path / "b"))
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    class Stopped(Exception):
        pass

    def stop(done, total):
        if done > 20:
            raise Stopped

    with pytest.raises(Stopped):
        prepare(source, str(tmp_path / "c"), shard_bytes=400_000, on_progress=stop)
    assert not (tmp_path / "c" / "dataset.json").exists()
    kept = {
        name: (tmp_path / "c" / name).stat().st_mtime_ns
        for name in os.listdir(tmp_path / "c")
        if name[-1] == "w"
    }
    assert 0 < len(kept) < done.num_shards
    again = prepare(source, str(tmp_path / "c"), shard_bytes=400_000)
    assert again.shards_written == done.num_shards - len(kept)
    assert all((tmp_path / "c" / name).stat().st_mtime_ns == time for name, time in kept.items())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert prepare(source, str(tmp_path / "c"), shard_bytes=400_000).shards_written == 0
    order = np.random.default_rng(0).permutation(40)
    assert open_dataset(str(tmp_path / "c")).train.read(order) == source.read(order)


def test_pages_that_resizing_loses_are_told(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    (tmp_path / "scans").mkdir()
    for name, pages in (("a", [pixels]), ("b", [pixels] * 3)):
        (tmp_path / "scans" / f"{name}.tif").write_bytes(tiff(*pages, photometric=RGB))
    source = open_dataset(str(tmp_path / "scans")).train
    what = "more than one page: the first is used"
    assert prepare(source, tmp_path / "small", resize=20).left_out == {
        what: [str(tmp_path / "scans" / "b.tif")]
    }
    assert prepare(source, tmp_path / "as it is").left_out == {}
    assert prepare(source, tmp_path / "larger", resize=50).left_out == {}, "its bytes are kept"


def test_resize_scales_the_shorter_side_down_and_never_up(tmp_path):
    (tmp_path / "in").mkdir()
    large, small = noise(0, 300, 400), noise(1, 40, 50)
    cv2.imwrite(str(tmp_path / "in" / "0.png"), large)
    cv2.imwrite(str(tmp_path / "in" / "1.png"), small)
    (tmp_path / "in" / "2.png").write_bytes(b"broken")
    source = open_dataset(str(tmp_path / "in")).train
    done = prepare(source, str(tmp_path / "out"), resize=100)
    shards = open_dataset(str(tmp_path / "out")).train
    first, second, third = shards.read(np.arange(3))
    assert first[:2] == b"\xff\xd8"
    image = decode(first)
    assert image.shape == (100, 133, 3)
    expected = cv2.cvtColor(cv2.resize(large, (133, 100), interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2GRAY)
    assert np.abs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float) - expected).mean() < 4
    assert second == source.read(np.array([1]))[0]
    assert third == b"broken"
    assert [(index, path) for index, path, _ in done.broken] == [(2, str(tmp_path / "in" / "2.png"))]
    assert shards.info.image_size == (70, 91)  # The median of two sizes lies between them.
    assert shards.info.digest != source.info.digest


def test_both_parts_of_a_data_set(tmp_path):
    data = open_dataset(str(write_folder(tmp_path / "in", {"a": 10, "b": 10})), holdout=0.25)
    prepare_dataset(data, str(tmp_path / "out"))
    shards = open_dataset(str(tmp_path / "out"))
    assert shards.train.read(np.arange(15)) == data.train.read(np.arange(15))
    assert shards.val.read(np.arange(5)) == data.val.read(np.arange(5))
    assert shards.val.info == data.val.info


def test_unlabelled_images(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.png").write_bytes(encoded(i))
    prepare(open_dataset(str(tmp_path / "in")).train, str(tmp_path / "out"))
    assert open_dataset(str(tmp_path / "out")).train.labels() is None


def test_mistakes_are_named(folder, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"resize: got 0, must be at least 1"):
        prepare(folder, out, resize=0)
    with pytest.raises(UserError, match=r"in' holds other files \(cat\); give an empty folder"):
        prepare(folder, str(tmp_path / "in"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file' is a file; give a folder"):
        prepare(folder, str(tmp_path / "file"))
    prepare(folder, out)
    with pytest.raises(UserError, match=r"holds shards of other images or another size"):
        prepare(folder, out, resize=5)
    (tmp_path / "out" / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"shard-00000.arrow' was written from other images or options"):
        prepare(folder, out, shard_bytes=5)
    (tmp_path / "out" / "dataset.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match=r"dataset.json' was not written by `ssl-ray data prepare`"):
        open_dataset(out)


def test_two_do_not_write_to_one_folder(folder, tmp_path):
    out = tmp_path / "out"
    with Location.of(out).alone(), pytest.raises(UserError, match=r"another process is writing to .*out'"):
        prepare(folder, out)
    assert not out.exists(), "nothing was written"
    assert prepare(folder, out).num_shards == 1


def test_a_missing_shard_is_named(folder, tmp_path):
    prepare(folder, str(tmp_path / "out"))
    (tmp_path / "out" / "shard-00000.arrow").unlink()
    with pytest.raises(UserError, match=r"shard-00000.arrow' is missing; run `ssl-ray data prepare` again"):
        open_dataset(str(tmp_path / "out"))
    assert prepare(folder, str(tmp_path / "out")).shards_written == 1
    assert open_dataset(str(tmp_path / "out"), holdout=0).train.info == folder.info
