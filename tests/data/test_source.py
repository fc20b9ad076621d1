import io
import pickle
import shutil
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ssl_ray.data.source import Subset, open_dataset
from ssl_ray.data.sources import row_groups
from ssl_ray.errors import UserError


def encoded(number: int, *, height: int = 20, width: int = 30, suffix: str = ".png") -> bytes:
    """An image whose pixels are all `number`."""
    return cv2.imencode(suffix, np.full((height, width, 3), number, np.uint8))[1].tobytes()


def number_of(data: bytes) -> int:
    return int(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[0, 0, 0])


def write_folder(root: Path, classes: dict[str, int], first: int = 0) -> Path:
    """Writes `classes[name]` PNG images for each class, pixels numbered in the order of their paths."""
    number = first
    for name in sorted(classes):
        (root / name).mkdir(parents=True)
        for i in range(classes[name]):
            (root / name / f"{i:03d}.png").write_bytes(encoded(number % 256))
            number += 1
    return root


def write_parquet(path: Path, columns: dict[str, object], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def numbers(source, indices=None):
    indices = np.arange(source.info.num_samples) if indices is None else np.array(indices)
    return [number_of(data) for data in source.read(indices)]


# Embedded sets


def test_fashion_is_split_into_7000_and_3000():
    data = open_dataset("fashion")
    assert data.train.info.num_samples == 7000
    assert data.val.info.num_samples == 3000
    assert data.train.info.image_size == (28, 28)
    assert data.train.info.num_classes == 10
    assert data.train.info.class_names[9] == "Ankle boot"
    assert data.train.info.digest != data.val.info.digest
    labels = np.concatenate([data.train.labels(), data.val.labels()])
    assert np.bincount(labels).tolist() == [1000] * 10
    # The published test set begins with an ankle boot, a pullover and two pairs of trousers.
    assert labels[:4].tolist() == [9, 2, 1, 1]
    first, last = data.train.read(np.array([0, 6999]))
    assert cv2.imdecode(np.frombuffer(first, np.uint8), cv2.IMREAD_UNCHANGED).shape == (28, 28)
    assert first != last
    assert data.val.path(1) == "embedded:fashion.parquet row 7001"


def test_digits_are_those_of_scikit_learn():
    data = open_dataset("digits")
    assert (data.train.info.num_samples, data.val.info.num_samples) == (1297, 500)
    expected = load_digits()
    assert np.array_equal(data.train.labels(), expected.target[:1297])
    image = cv2.imdecode(np.frombuffer(data.val.read(np.array([3]))[0], np.uint8), cv2.IMREAD_GRAYSCALE)
    assert image.shape == (32, 32)
    # Averaging 4 x 4 pixels comes back to the original but for the smoothing of the edges.
    small = image.reshape(8, 4, 8, 4).mean((1, 3)) * 16 / 255
    assert np.corrcoef(small.ravel(), expected.images[1300].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("name", ["fashion", "digits"])
def test_embedded_sources_are_small_when_pickled(name):
    source = open_dataset(name).train
    text = pickle.dumps(source)
    assert len(text) < 3000
    copy = pickle.loads(text)
    assert copy.info == source.info
    assert copy.read(np.array([5, 0, 5])) == source.read(np.array([5, 0, 5]))


# Folders


def test_class_folders_are_labels_and_a_share_is_held_out(tmp_path):
    root = write_folder(tmp_path / "pets", {"dog": 8, "cat": 12})
    data = open_dataset(str(root), holdout=0.2)
    assert data.note == "held out 4 of 20 images for evaluation, the same ones every time"
    assert (data.train.info.num_samples, data.val.info.num_samples) == (16, 4)
    assert sorted(numbers(data.train) + numbers(data.val)) == list(range(20))
    for part in (data.train, data.val):
        assert part.info.class_names == ("cat", "dog")
        assert part.info.num_classes == 2
        assert part.info.name == "pets"
        assert part.labels().tolist() == [int(number >= 12) for number in numbers(part)]
        assert [Path(part.path(i)).name for i in range(2)] == [
            f"{n % 12 if n < 12 else n - 12:03d}.png" for n in numbers(part, [0, 1])
        ]
    again = open_dataset(str(root), holdout=0.2)
    assert numbers(again.val) == numbers(data.val)
    assert again.val.info.digest == data.val.info.digest


def test_read_follows_the_order_of_the_indices(tmp_path):
    source = open_dataset(str(write_folder(tmp_path, {"a": 5, "b": 5})), holdout=0).train
    assert numbers(source, [7, 0, 9, 0]) == [7, 0, 9, 0]
    assert source.read(np.array([], np.int64)) == []


def test_train_and_val_folders_are_the_split(tmp_path):
    write_folder(tmp_path / "train", {"a": 3, "b": 3, "c": 3})
    write_folder(tmp_path / "test", {"c": 2, "a": 2}, first=100)
    data = open_dataset(str(tmp_path))
    assert numbers(data.train) == list(range(9))
    assert numbers(data.val) == [100, 101, 102, 103]
    assert data.val.labels().tolist() == [0, 0, 2, 2]  # Numbered by the training part's classes.
    assert data.train.info.name == tmp_path.name
    assert data.note == "no images held out of 1 classes (b)"
    write_folder(tmp_path / "val", {"b": 2}, first=200)
    assert numbers(open_dataset(str(tmp_path)).val) == [200, 201]  # `val` is preferred to `test`.
    write_folder(tmp_path / "val2", {"b": 1})
    (tmp_path / "val2").rename(tmp_path / "val" / "zebra")
    with pytest.raises(UserError, match=r"1 folders \(zebra\) in .* are no classes of the training part"):
        open_dataset(str(tmp_path))


def test_a_held_out_part_without_labels_is_of_no_use(tmp_path):
    write_folder(tmp_path / "train", {"a": 10, "b": 10})
    write_folder(tmp_path, {"test": 3})
    data = open_dataset(str(tmp_path))
    assert (data.train.info.num_samples, data.val.info.num_samples) == (18, 2)
    assert data.note.startswith("the held-out part has no labels and is not used; held out 2 of 20 images")


def test_a_class_called_train_is_a_class(tmp_path):
    data = open_dataset(str(write_folder(tmp_path, {"bus": 2, "train": 2})), holdout=0)
    assert data.train.info.class_names == ("bus", "train")


def test_flat_and_mixed_folders_are_unlabelled(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    data = open_dataset(str(tmp_path))
    assert data.val is None
    assert data.train.labels() is None
    assert data.train.info.num_classes is None
    assert data.note == "no labels: no kNN accuracy"
    write_folder(tmp_path / "more", {"x": 1, "y": 1})
    data = open_dataset(str(tmp_path))
    assert data.train.info.num_samples == 6
    assert data.train.labels() is None
    assert "unlabelled: 4 images lie outside a class folder" in data.note


def test_one_subfolder_is_no_label(tmp_path):
    assert open_dataset(str(write_folder(tmp_path, {"images": 3}))).train.labels() is None


def test_names_of_all_kinds(tmp_path):
    root = tmp_path / "Bilder von Zürich 100%"
    (root / "été & co").mkdir(parents=True)
    (root / "b#1?").mkdir()
    (root / "été & co" / "ein Bild.JPG").write_bytes(encoded(10, suffix=".jpg"))
    (root / "b#1?" / "x.JPEG").write_bytes(encoded(20, suffix=".jpg"))
    (root / "b#1?" / "link.png").symlink_to(root / "été & co" / "ein Bild.JPG")
    (root / "linked").symlink_to(root / "b#1?", target_is_directory=True)
    (root / "notes.TXT").write_text("not an image")
    (root / ".hidden.png").write_text("not an image")
    for uri in (str(root), f"file://{quote(str(root))}"):
        data = open_dataset(uri, holdout=0)
        assert data.train.info.class_names == ("b#1?", "linked", "été & co")
        assert data.train.labels().tolist() == [0, 0, 1, 1, 2]
        assert numbers(data.train) == [10, 20, 10, 20, 10]
        assert data.note.startswith("ignored 1 files that are not images by suffix (notes.TXT)")
        assert data.train.path(4).endswith("été & co/ein Bild.JPG")


def test_image_size_is_the_median_as_shown(tmp_path):
    for i, (height, width) in enumerate([(10, 10), (40, 60), (50, 70)]):
        (tmp_path / f"{i}.png").write_bytes(encoded(i, height=height, width=width))
    assert open_dataset(str(tmp_path)).train.info.image_size == (40, 60)
    turned = Image.new("RGB", (80, 30))
    turned.getexif()[0x0112] = 6  # A camera held upright: 80 high, 30 wide.
    (tmp_path / "turned").mkdir()
    turned.save(tmp_path / "turned" / "a.jpg", exif=turned.getexif())
    assert open_dataset(str(tmp_path / "turned")).train.info.image_size == (80, 30)


def test_the_digest_follows_the_content(tmp_path):
    root = write_folder(tmp_path / "a", {"x": 3, "y": 3})
    digest = open_dataset(str(root)).train.info.digest
    shutil.copytree(root, tmp_path / "b")
    assert open_dataset(str(tmp_path / "b")).train.info.digest == digest
    (root / "x" / "000.png").write_bytes(encoded(0, width=31) + b"longer")
    assert open_dataset(str(root)).train.info.digest != digest


def test_a_million_paths_pickle_small_and_a_vanished_file_is_a_broken_image(tmp_path):
    root = write_folder(tmp_path, {f"n{i:08d}": 20 for i in range(20)})
    source = open_dataset(str(root), holdout=0).train
    text = pickle.dumps(source)
    assert len(text) < 400 * 12 + 1500  # Paths of 17 bytes.
    copy = pickle.loads(text)
    assert copy.path(399) == source.path(399)
    assert np.array_equal(copy.labels(), np.repeat(np.arange(20), 20))
    Path(source.path(3)).unlink()
    assert copy.read(np.array([3, 4])) == [b"", source.read(np.array([4]))[0]]


# Parquet


def test_parquet_with_bytes_and_labels(tmp_path):
    images = [encoded(i) for i in range(50)]
    file = write_parquet(
        tmp_path / "x.parquet", {"image": images, "label": [i % 5 for i in range(50)]}, row_group_size=7
    )
    data = open_dataset(str(file))
    assert data.train.info.num_samples == 45
    assert data.train.info.num_classes == 5
    assert data.train.info.image_size == (20, 30)
    assert sorted(numbers(data.train) + numbers(data.val)) == list(range(50))
    assert data.train.labels().tolist() == [number % 5 for number in numbers(data.train)]
    whole = open_dataset(str(file), holdout=0).train
    assert whole.read(np.array([49, 0, 7, 6, 49])) == [images[i] for i in (49, 0, 7, 6, 49)]
    assert whole.path(8) == f"{file} row 8"
    assert len(pickle.dumps(whole)) < 3000
    assert pickle.loads(pickle.dumps(whole)).read(np.array([33])) == [images[33]]


def test_parquet_as_hugging_face_writes_it(tmp_path):
    def table(first, labels):
        images = [{"bytes": encoded(first + i), "path": f"{i}.png"} for i in range(len(labels))]
        names = '{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
        return pa.table({"label": labels, "image": images}).replace_schema_metadata({"huggingface": names})

    (tmp_path / "data").mkdir()
    for name, first, labels in [
        ("train-00000-of-00002", 0, [0, 1, 1]),
        ("train-00001-of-00002", 3, [0, 1]),
        ("validation-00000-of-00001", 100, [1, 1]),
        ("test-00000-of-00001", 200, [-1, -1]),
    ]:
        pq.write_table(table(first, labels), tmp_path / "data" / f"{name}.parquet", row_group_size=2)
    data = open_dataset(str(tmp_path))
    assert numbers(data.train) == [0, 1, 2, 3, 4]
    assert numbers(data.train, [4, 2]) == [4, 2]
    assert data.train.labels().tolist() == [0, 1, 1, 0, 1]
    assert data.train.info.class_names == ("cat", "dog")
    assert numbers(data.val) == [100, 101]


def test_parquet_without_labels_and_with_missing_ones(tmp_path):
    images = [encoded(i) for i in range(4)]
    data = open_dataset(str(write_parquet(tmp_path / "a.parquet", {"picture": images})))
    assert data.val is None
    assert data.train.labels() is None
    data = open_dataset(
        str(write_parquet(tmp_path / "b.parquet", {"image": images, "label": [0, 1, None, 1]}))
    )
    assert data.train.labels() is None
    assert (
        "label column 'label': 1 of 4 are missing, negative or huge, the first in b.parquet: taken as"
        in data.note
    )


def test_parquet_with_text_labels(tmp_path):
    images = [encoded(i) for i in range(4)]
    write_parquet(tmp_path / "train" / "x.parquet", {"image": images, "label": ["b", "a", "c", "b"]})
    write_parquet(tmp_path / "val" / "x.parquet", {"image": images[:2], "label": ["c", "c"]})
    data = open_dataset(str(tmp_path))
    assert data.train.info.class_names == ("a", "b", "c")
    assert data.train.labels().tolist() == [1, 0, 2, 1]
    assert data.val.labels().tolist() == [2, 2]
    write_parquet(tmp_path / "val" / "y.parquet", {"image": images[:2], "label": ["c", "d"]})
    with pytest.raises(UserError, match=r"label 'd' in .* is no class of the training part"):
        open_dataset(str(tmp_path))


def test_a_null_image_is_a_broken_image(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", {"image": [encoded(0), None]})
    assert open_dataset(str(file)).train.read(np.array([1, 0])) == [b"", encoded(0)]


def test_row_groups_are_read_once_and_memory_is_bounded(tmp_path, monkeypatch):
    images = [bytes([i]) * 1000 for i in range(100)]
    images[:16] = [encoded(i) for i in range(16)]
    file = write_parquet(tmp_path / "x.parquet", {"image": images}, row_group_size=10, use_dictionary=False)
    cache = row_groups.RowGroups()
    monkeypatch.setattr(row_groups, "ROW_GROUPS", cache)
    monkeypatch.setattr(row_groups, "CACHE_BYTES", 35_000)
    data = open_dataset(str(file))
    assert "is read with its row group of 0 MiB; `ssl-ray data prepare`" in data.note
    rng = np.random.default_rng(0)
    for _ in range(20):
        indices = rng.integers(0, 100, 30)
        assert data.train.read(indices) == [images[i] for i in indices]
        assert 1 <= len(cache._kept) <= 4


def test_columns_can_be_named(tmp_path):
    one, two = [encoded(1)] * 2, [encoded(2)] * 2
    file = str(
        write_parquet(tmp_path / "x.parquet", {"left": one, "right": two, "kind": [0, 1], "size": [7, 7]})
    )
    with pytest.raises(
        UserError, match=r"no image column in .* columns: left \(binary\), right \(binary\), kind"
    ):
        open_dataset(file)
    data = open_dataset(file, image_column="right", label_column="kind", holdout=0)
    assert numbers(data.train) == [2, 2]
    assert data.train.labels().tolist() == [0, 1]
    with pytest.raises(UserError, match=r"image_column: 'rigth' .* did you mean 'right'"):
        open_dataset(file, image_column="rigth")
    with pytest.raises(UserError, match=r"label_column: 'left' .* allowed: kind, size"):
        open_dataset(file, image_column="left", label_column="left")


# torchvision


def write_mnist(root: Path, name: str, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Files in the IDX format of yann.lecun.com/exdb/mnist."""
    raw = root / name / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        (raw / f"{split}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


def test_torchvision_sets_by_name(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 28, 28)), np.arange(12) % 10
    write_mnist(tmp_path, "KMNIST", "train", images[:8], labels[:8])
    write_mnist(tmp_path, "KMNIST", "t10k", images[8:], labels[8:])
    data = open_dataset(f"torchvision:KMNIST?root={tmp_path}")
    assert (data.train.info.num_samples, data.val.info.num_samples) == (8, 4)
    assert data.train.info.name == "KMNIST"
    assert data.train.info.num_classes == 10
    assert data.val.labels().tolist() == [8, 9, 0, 1]
    copy = pickle.loads(pickle.dumps(data.train))
    for source in (data.train, copy):
        decoded = np.array(Image.open(io.BytesIO(source.read(np.array([5, 2]))[0])))
        assert np.array_equal(decoded, images[5])
    monkeypatch.setenv("SSL_RAY_CACHE", str(tmp_path))
    assert open_dataset("torchvision:KMNIST").train.info == data.train.info


def test_torchvision_arguments_go_to_the_constructor():
    data = open_dataset("torchvision:FakeData?size=5")
    assert data.train.info.num_samples == 5
    assert data.train.info.image_size == (224, 224)
    assert data.val is None
    assert data.train.labels() is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("torchvision:CIFAR1", "torchvision.datasets has no 'CIFAR1'; did you mean 'CIFAR10'"),
        ("torchvision:CIFAR10?rot=x", "CIFAR10 has no argument 'rot'; did you mean 'root'"),
        (
            "torchvision:CIFAR10?root=/nonexistent",
            "not found.*give torchvision:CIFAR10[?]root=/path, with &download=1",
        ),
    ],
)
def test_torchvision_mistakes_are_named(uri, message):
    with pytest.raises(UserError, match=message):
        open_dataset(uri)


# Mistakes


def test_mistakes_are_one_line_that_names_what_is_allowed(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bad.parquet").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_text("x")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("x")
    write_parquet(tmp_path / "rows.parquet", {"image": pa.array([], pa.binary())})
    mistakes = {
        "fashon": "no such file or folder: 'fashon'; did you mean 'fashion'[?] allowed: fashion, digits, torchvision",
        str(tmp_path / "missing"): "no such file or folder: .*missing'; allowed: fashion",
        str(tmp_path / "notes.txt"): "notes.txt' is a file of another kind than Parquet; allowed",
        str(tmp_path / "bad.parquet"): "bad.parquet' is not a readable Parquet file",
        str(tmp_path / "rows.parquet"): "rows.parquet' holds no rows",
        str(tmp_path / "empty"): "no image in .*empty'; allowed suffixes: .* .jpg ",
        str(tmp_path / "docs"): "no image in .*docs', only 1 files that are not images by suffix .a.txt.",
        str(tmp_path / "broken"): "none of 1 sampled images can be read; the first is .*a.jpg",
        "nope://bucket/x": "cannot open 'nope://bucket/x': .*allowed: a local path, file://, s3://",
    }
    for uri, message in mistakes.items():
        with pytest.raises(UserError, match=message) as caught:
            open_dataset(uri)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"holdout: got 1.0, must be"):
        open_dataset("fashion", holdout=1.0)
    with pytest.raises(UserError, match=r"image_column: got 'x', but 'fashion' is not Parquet"):
        open_dataset("fashion", image_column="x")


def test_credentials_stay_out_of_messages():
    with pytest.raises(UserError) as caught:
        open_dataset("nope://user:secret@host/x")
    assert "secret" not in str(caught.value)


def test_a_subset_of_a_subset_counts_from_its_own_start():
    source = open_dataset("fashion").val
    part = Subset(source, 10, 20)
    assert part.read(np.array([0])) == source.read(np.array([10]))
    assert part.labels().tolist() == source.labels()[10:20].tolist()


# Object stores


def upload(client, folder: Path, bucket_path: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with client.open_output_stream(f"{bucket_path}/{file.relative_to(folder)}") as stream:
                stream.write(file.read_bytes())


def test_folders_parquet_and_shards_on_s3(s3, tmp_path):
    from ssl_ray.data.prepare import prepare_dataset

    client, query = s3
    write_folder(tmp_path / "f" / "train", {"a b": 20, "ü": 20})
    write_folder(tmp_path / "f" / "val", {"a b": 5})
    write_parquet(
        tmp_path / "p" / "x.parquet", {"image": [encoded(i) for i in range(30)], "label": [0, 1] * 15}
    )
    upload(client, tmp_path / "f", "pictures/folder")
    upload(client, tmp_path / "p", "pictures/tables")

    folder = open_dataset(f"s3://pictures/folder?{query}")
    local = open_dataset(str(tmp_path / "f"))
    assert numbers(folder.train, [39, 0, 7]) == [39, 0, 7]
    assert folder.train.info.digest == local.train.info.digest
    assert folder.val.labels().tolist() == [0] * 5
    copy = pickle.loads(pickle.dumps(folder.train))
    assert copy.read(np.arange(40)) == local.train.read(np.arange(40))

    tables = open_dataset(f"s3://pictures/tables?{query}", holdout=0).train
    assert numbers(tables, [29, 3]) == [29, 3]

    out = f"s3://pictures/shards?{query}"
    prepare_dataset(local, out, shard_bytes=1500)
    shards = open_dataset(out)
    assert shards.train.read(np.arange(40)) == local.train.read(np.arange(40))
    assert shards.val.labels().tolist() == [0] * 5
    with pytest.raises(UserError, match=r"no such file or folder"):
        open_dataset(f"s3://pictures/nothing?{query}")
