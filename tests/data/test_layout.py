"""Which folders are splits, which are classes: every way in which people lay out images, and what is said of it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from ssl_ray.data.prepare import prepare
from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.data.sources.layout import split_of
from ssl_ray.errors import UserError
from tests.data.test_source import encoded, numbers, write_parquet


def write(root: Path, *folders: str, count: int = 3) -> Path:
    """Writes `count` images into each folder, with its number as the value of their pixels."""
    for number, folder in enumerate(folders):
        for i in range(count):
            file = root / folder / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(number))
    return root


def told(dataset: Dataset) -> tuple[str, list[str]]:
    """What the user reads: lines, and warnings."""
    lines: list[str] = []
    warnings: list[str] = []
    dataset.tell(lines.append, warnings.append, "photos")
    return "\n".join(lines), warnings


def values(source: object) -> set[int]:
    """The folders, by number, that the images of a source come from."""
    return set() if source is None else set(numbers(source))


def split(name: str, classes: Iterable[str] = ("cat", "dog")) -> list[str]:
    return [f"{name}/{folder}" for folder in classes]


TRAIN_NAMES = (
    "train",
    "Train",
    "TRAIN",
    "Training",
    "train2017",
    "training_set",
    "TrainingSet",
    "train images",
)
TRAIN_FILES = (
    "seg_train",
    "imagesTrain",
    "split=train",
    "train-00000-of-00004",
    "trainval",
    "labeled",
    "train.v2",
)
NAMES = {
    "train": TRAIN_NAMES + TRAIN_FILES,
    "val": ("val", "Val", "valid", "validation", "dev", "val2017", "Validation Set", "data-valid", "valset"),
    "test": ("test", "Testing", "test_set", "eval", "holdout", "held-out", "Held Out", "test1"),
    "unlabelled": ("unlabeled", "Unlabelled", "un-labeled", "Un Labelled", "unlabeled2017", "unsup"),
    None: (
        "cat",
        "latest",
        "strain",
        "contest",
        "develop",
        "valley",
        "images",
        "train+unlabeled",
        "n01440764",
        "1",
    ),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_names_of_splits(kind: str | None, name: str) -> None:
    assert split_of(name) == kind


@pytest.mark.parametrize(
    ("train", "held_out", "unused"),
    [
        ("train", "val", []),
        ("Train", "Val", []),
        ("train", "valid", ["test"]),
        ("Training", "Testing", []),
        ("train", "dev", []),
        ("train", "test", ["unlabeled"]),
        ("train", "val", ["test", "Unlabelled"]),
        ("training_set", "test_set", []),
        ("seg_train", "seg_test", []),
        ("train2017", "val2017", ["test2017"]),
        ("trainval", "test", []),
        ("split=train", "split=validation", ["split=test"]),
    ],
)
@pytest.mark.parametrize("around", ["", "archive/", "download/photos-1/"])
def test_folders_named_after_splits_are_these(
    tmp_path: Path, around: str, train: str, held_out: str, unused: list[str]
) -> None:
    write(tmp_path, *(f"{around}{folder}" for name in (train, held_out, *unused) for folder in split(name)))
    dataset = open_dataset(str(tmp_path))
    assert (values(dataset.train), values(dataset.val)) == ({0, 1}, {2, 3})
    assert dataset.train.info.class_names == dataset.val.info.class_names == ("cat", "dog")
    assert dataset.train.info.name == tmp_path.name
    assert sorted(part.name for part in dataset.unused) == sorted(unused)
    line, warnings = told(dataset)
    left = "".join(
        f", not used: {', '.join(f'{part.name} (6 images)' for part in dataset.unused)}" for _ in unused[:1]
    )
    assert (
        line
        == f"photos: 6 images to train on ({train}), 6 images held out ({held_out}){left}; 2 classes (cat, dog)"
    )
    assert [w for w in warnings if "unlabel" not in w.lower()] == []
    assert len(warnings) == sum("nlabel" in name for name in unused)
    for number, part in enumerate(unused):
        found = next(u for u in dataset.unused if u.name == part)
        opened = open_dataset(found.uris[0], holdout=0)
        assert values(opened.train) == {4 + 2 * number, 5 + 2 * number}


@pytest.mark.parametrize("around", ["", "archive/"])
def test_splits_may_lie_in_classes(tmp_path: Path, around: str) -> None:
    folders = [
        f"{name}/{part}"
        for name in ("bottle", "cable")
        for part in ("train/good", "Test/cut", "dev", "masks")
    ]
    write(tmp_path, *(around + folder for folder in folders))
    dataset = open_dataset(str(tmp_path))
    assert (values(dataset.train), values(dataset.val)) == ({0, 4}, {2, 6})
    assert dataset.train.info.class_names == dataset.val.info.class_names == ("bottle", "cable")
    assert dataset.train.labels().tolist() == [0] * 3 + [1] * 3
    line, warnings = told(dataset)
    assert line.startswith(
        "photos: 6 images to train on (train), 6 images held out (dev), not used: Test (6 images); "
    )
    assert warnings == ["not used, as of no split: 'masks' (6 images)"]
    (part,) = dataset.unused
    assert [values(open_dataset(uri, holdout=0).train) for uri in part.uris] == [{1}, {5}]
    write(tmp_path, f"{around}wood")
    with pytest.raises(UserError, match="holds splits in 'bottle', 'cable', but not in 'wood'; move"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("drawn", ["annotations/trimaps", "masks", "SegmentationClass", "labels/day"])
@pytest.mark.parametrize("pictures", ["images", "JPEGImages"])
def test_what_is_drawn_for_pictures_is_no_class(tmp_path: Path, pictures: str, drawn: str) -> None:
    write(tmp_path / "flat", pictures, drawn)
    dataset = open_dataset(str(tmp_path / "flat"))
    assert values(dataset.train) == {0}
    assert dataset.train.labels() is None
    assert dataset.warnings == (f"not used, as of no split: {drawn.partition('/')[0]!r} (3 images)",)
    write(
        tmp_path / "split",
        *(f"{name}/{part}" for name in (pictures, drawn) for part in ("training", "validation")),
    )
    dataset = open_dataset(str(tmp_path / "split"))
    assert (values(dataset.train), values(dataset.val)) == ({0}, {1})
    assert dataset.names == ("training", "validation")


@pytest.mark.parametrize("parts", [["train"], ["train/cat", "train/dog"]])
def test_training_beside_what_is_drawn_is_a_split(tmp_path: Path, parts: list[str]) -> None:
    dataset = open_dataset(str(write(tmp_path, *parts, "masks")), holdout=0)
    assert values(dataset.train) == set(range(len(parts)))
    assert dataset.warnings == ("not used, as of no split: 'masks' (3 images)",)


def test_unlabelled_images_are_left_alone_and_it_is_said_how_to_train_on_them(tmp_path: Path) -> None:
    write(tmp_path, *split("train"), *split("test"), "unlabeled")
    line, warnings = told(open_dataset(str(tmp_path)))
    assert "not used: unlabeled (3 images)" in line
    assert warnings == [
        f"the images of 'unlabeled' are not trained on; to pretrain on them, give --data {tmp_path}/unlabeled"
    ]
    assert values(open_dataset(f"{tmp_path}/unlabeled").train) == {4}


def test_folders_without_images_and_those_of_systems_change_nothing(tmp_path: Path) -> None:
    write(tmp_path, *split("train"), *split("valid"))
    before = told(open_dataset(str(tmp_path)))
    for folder in ("empty", "annotations/deep", "labels", ".git", "test"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "annotations" / "deep" / "a.xml").write_text("")
    (tmp_path / "labels" / "b.txt").write_text("")
    (tmp_path / "README.md").write_text("")
    write(tmp_path, "__MACOSX/train/cat", ".ipynb_checkpoints", "train/cat/@eaDir", "$RECYCLE.BIN")
    assert told(open_dataset(str(tmp_path))) == before
    classes = write(tmp_path / "classes", "cat", "dog")
    write(classes, "__MACOSX/cat", "dog/@eaDir/1.png")
    (classes / "train").mkdir()
    (classes / "test" / "nothing").mkdir(parents=True)
    assert told(open_dataset(str(classes), holdout=0)) == (
        "photos: 6 images to train on, none held out; 2 classes (cat, dog)",
        [],
    )


def test_images_beside_splits_are_not_used_and_named(tmp_path: Path) -> None:
    write(tmp_path, *split("train"), *split("val"), "masks")
    (tmp_path / "logo.png").write_bytes(encoded(0))
    dataset = open_dataset(str(tmp_path))
    assert (values(dataset.train), values(dataset.val)) == ({0, 1}, {2, 3})
    assert dataset.warnings == (
        "not used, as of no split: 'masks' (3 images) and 1 images in no folder ('logo.png')",
    )


def test_parts_without_class_folders_are_splits_without_labels(tmp_path: Path) -> None:
    write(tmp_path, "train", "valid", "test")
    dataset = open_dataset(str(tmp_path))
    assert (values(dataset.train), values(dataset.val)) == ({0}, {1})
    assert told(dataset) == (
        "photos: 3 images to train on (train), 3 images held out (valid), not used: test (3 images); no classes\n"
        "no labels: no kNN accuracy",
        [],
    )


@pytest.mark.parametrize(
    ("folders", "classes", "warning"),
    [
        (
            ["bus", "car", "train"],
            ("bus", "car", "train"),
            "'train' beside 'bus', 'car' is taken for no split",
        ),
        (["cat", "dog", "test"], ("cat", "dog", "test"), "'test' beside 'cat', 'dog' is taken for no split"),
        (["bus/city", "train/steam"], ("bus", "train"), "'train' beside 'bus' is taken for no split"),
        (["bus/images", "train/images"], ("bus", "train"), "'train' beside 'bus' is taken for no split"),
        # Words, as in data of printed text.
        (
            ["a", "b", "c", "d", "test", "train"],
            ("a", "b", "c", "d", "test", "train"),
            "'test', 'train' beside",
        ),
        (
            [*split("summer"), *split("winter")],
            ("summer", "winter"),
            "the classes are 'summer', 'winter', though each of them holds 'cat', 'dog'",
        ),
    ],
)
def test_what_may_be_a_class_is_one_with_a_warning(
    tmp_path: Path, folders: list[str], classes: tuple[str, ...], warning: str
) -> None:
    dataset = open_dataset(str(write(tmp_path, *folders)), holdout=0)
    assert dataset.train.info.class_names == classes
    assert values(dataset.train) == set(range(len(folders)))
    assert len(dataset.warnings) == 1
    assert warning in dataset.warnings[0]


@pytest.mark.parametrize(
    "folders",
    [
        ["cat", "dog"],
        ["bullet train", "crash test", "cat", "dog", "cow"],  # nothing else than classes has such names
        ["bullet train", "steam train"],
        ["1", "images"],
        [f"n{i}/images" for i in range(3)],
        ["cat/left", "cat/right", "dog/left"],
    ],
)
def test_plain_classes_need_no_warning(tmp_path: Path, folders: list[str]) -> None:
    dataset = open_dataset(str(write(tmp_path, *folders)), holdout=0)
    assert dataset.train.info.class_names == tuple(sorted({folder.partition("/")[0] for folder in folders}))
    assert dataset.warnings == ()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            [*split("train"), *split("extra")],
            r"holds 'train' beside 'extra': splits or classes\?.* such as --data .*/train$",
        ),
        ([*split("train"), "bus"], r"holds 'train' beside 'bus': splits or classes\?"),
        (["cat", "dog", *split("test")], r"holds 'test' beside 'cat', 'dog': splits or classes\?"),
        ([*split("images"), *split("test")], r"holds 'test' beside 'images': splits or classes\?"),
        ([*split("val"), *split("test")], r"has no training split beside 'test', 'val'; call it 'train'"),
        (["test", "unlabeled"], r"has no training split beside 'test', 'unlabeled'"),
        ([*split("train"), *split("val"), *split("valid")], r"more than one held-out split: 'val', 'valid'"),
        (
            [*split("train"), *split("Train"), *split("val")],
            r"more than one training split: 'Train', 'train'",
        ),
        (["trainA", "trainB", "testA", "testB"], r"more than one training split: 'trainA', 'trainB'"),
    ],
)
@pytest.mark.parametrize("around", ["", "archive/"])
def test_what_cannot_be_told_is_refused_in_one_line(
    tmp_path: Path, around: str, folders: list[str], message: str
) -> None:
    write(tmp_path, *(around + folder for folder in folders))
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / around) in str(caught.value)


@pytest.mark.parametrize("name", ["val", "Test"])
def test_a_held_out_split_alone_is_trained_on_with_a_warning(tmp_path: Path, name: str) -> None:
    dataset = open_dataset(str(write(tmp_path, *split(name))), holdout=0)
    assert values(dataset.train) == {0, 1}
    assert dataset.train.info.class_names == ("cat", "dog")
    assert dataset.warnings == (f"there is no training split: the images of '{name}' are trained on",)


# Classes


def test_a_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    write(tmp_path, *split("train", ["cat", "cow", "dog"]), *split("val", ["cat", "elk", "fox"]))
    with pytest.raises(
        UserError,
        match=r"2 folders \(elk, fox\) in '.*/val' are no classes of the training part; it has 3 classes \(cat, cow",
    ):
        open_dataset(str(tmp_path))


def test_classes_of_which_nothing_is_held_out_are_named(tmp_path: Path) -> None:
    write(tmp_path, *split("train", ["cat", "cow", "dog"]), *split("val", ["cow"]))
    dataset = open_dataset(str(tmp_path))
    assert dataset.val.labels().tolist() == [1] * 3
    assert dataset.note == "no images held out of 2 classes (cat, dog)"


@pytest.mark.parametrize("around", ["images", "archive/pets v2/images", "été"])
def test_class_folders_may_lie_in_other_folders(tmp_path: Path, around: str) -> None:
    write(tmp_path, f"{around}/cat", f"{around}/dog")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "list.txt").write_text("")
    dataset = open_dataset(str(tmp_path), holdout=0)
    assert dataset.train.info.class_names == ("cat", "dog")
    assert dataset.train.labels().tolist() == numbers(dataset.train) == [0] * 3 + [1] * 3
    assert dataset.note == (
        "ignored 1 files that are not images by suffix (annotations/list.txt); "
        f"the classes are the folders in '{around}'"
    )
    assert dataset.train.path(3) == str(tmp_path / around / "dog" / "0.png")


def test_class_folders_of_splits_may_lie_in_other_folders(tmp_path: Path) -> None:
    write(tmp_path, *split("train/images"), "train/labels", *split("valid/images", ["dog"]))
    for file in (tmp_path / "train" / "labels").iterdir():
        file.rename(file.with_suffix(".txt"))
    dataset = open_dataset(str(tmp_path))
    assert dataset.train.info.class_names == ("cat", "dog")
    assert dataset.val.labels().tolist() == [1] * 3


def test_one_folder_for_each_split_is_no_class(tmp_path: Path) -> None:
    """As Tiny ImageNet has it: n0/images in training, all in `images` in validation."""
    write(tmp_path, "train/n0/images", "train/n1/images", "val/images")
    dataset = open_dataset(str(tmp_path), holdout=0.5)
    assert dataset.train.info.class_names == ("n0", "n1")
    assert values(dataset.train) | values(dataset.val) == {0, 1}
    assert "2 deeper folders (n0/images, n1/images)" in dataset.note
    assert "all images lie in one folder, 'images', which is no class of the training part" in dataset.note
    assert "the held-out part has no labels and is not used" in dataset.note
    assert "(val)" not in told(dataset)[0]


def test_it_is_said_why_there_are_no_labels(tmp_path: Path) -> None:
    dataset = open_dataset(str(write(tmp_path, "a/images")))
    assert dataset.note == "unlabelled: all images lie in one folder, 'a/images'; no labels: no kNN accuracy"
    write(tmp_path, "a/images/cat", "a/images/dog")
    note = open_dataset(str(tmp_path)).note
    assert note.startswith("unlabelled: 3 images lie outside a class folder")


def test_deeper_folders_are_of_the_class_of_the_first(tmp_path: Path) -> None:
    dataset = open_dataset(str(write(tmp_path, "cat/home/day", "cat/wild", "dog")), holdout=0)
    assert dataset.train.labels().tolist() == [0] * 6 + [1] * 3
    assert (
        dataset.note
        == "the first folder is the class, deeper ones are not: 2 deeper folders (cat/home, cat/wild)"
    )


# The digest that a run keeps of its data: as it was before folders were looked through.


@pytest.mark.parametrize("name", ["", "train", "images", "test", "archive/images"])
@pytest.mark.parametrize("classes", [[""], ["cat", "dog"]])
def test_the_digest_is_of_paths_and_sizes_below_the_split_or_the_whole(
    tmp_path: Path, name: str, classes: list[str]
) -> None:
    folders = [f"{name}/{c}".strip("/") for c in classes]
    write(tmp_path, *folders, *(["val"] if name == "train" else []))
    start = tmp_path / "train" if name == "train" else tmp_path
    lines = [
        f"{file.relative_to(start).as_posix()}\t{file.stat().st_size}"
        for folder in folders
        for file in sorted((tmp_path / folder).iterdir())
    ]
    expected = hashlib.blake2b("\n".join(lines).encode() + b"\0", digest_size=16).hexdigest()
    assert open_dataset(str(tmp_path), holdout=0).train.info.digest == expected


# Parquet and shards


def tables(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_parquet(root / f"{name}.parquet", {"image": [encoded(number)] * 2, "label": [0, 1]})
    return root


@pytest.mark.parametrize(
    ("train", "held_out", "unused"),
    [
        (
            ["train-00000-of-00002", "train-00001-of-00002"],
            "validation-00000-of-00001",
            "test-00000-of-00001",
        ),
        (["data/train-0", "data/train-1"], "data/valid-0", "data/test-0"),
        (["train/a", "train/b"], "val/a", "test/a"),
        (["Train/a", "Train/b"], "dev/a", "Test/a"),
        (["default/train/0000", "default/train/0001"], "default/validation/0000", "default/test/0000"),
        (["split=train/0", "split=train/1"], "split=val/0", "split=test/0"),
        (["mnist_train_0", "mnist_train_1"], "mnist_dev", "mnist_test"),
        (["one/train-0", "two/train-0"], "one/val-0", "two/test-0"),
    ],
)
def test_tables_named_after_splits(tmp_path: Path, train: list[str], held_out: str, unused: str) -> None:
    dataset = open_dataset(str(tables(tmp_path, *train, held_out, unused)))
    assert (values(dataset.train), values(dataset.val)) == ({0, 1}, {2})
    assert dataset.warnings == ()
    (part,) = dataset.unused
    assert [values(open_dataset(uri, holdout=0).train) for uri in part.uris] == [{3}]
    assert f"not used: {part.name} (1 files); 2 classes" in told(dataset)[0]


def test_tables_that_are_no_split(tmp_path: Path) -> None:
    dataset = open_dataset(str(tables(tmp_path / "a", "train-0", "val-0", "more/x")))
    assert (values(dataset.train), values(dataset.val)) == ({0}, {1})
    assert dataset.warnings == ("not used, as of no split: 1 Parquet files ('more/x.parquet')",)
    assert values(open_dataset(str(tables(tmp_path / "b", "0", "1", "label=0/2")), holdout=0).train) == {
        0,
        1,
        2,
    }
    only = open_dataset(str(tables(tmp_path / "c", "test-0", "test-1")), holdout=0)
    assert values(only.train) == {0, 1}
    assert only.warnings == ("there is no training split: the images of 'test' are trained on",)
    for names, message in (
        (["test-0", "validation-0"], "no training split beside 'test', 'validation'"),
        (["images", "test"], "no training split beside 'test', 'images.parquet'"),
        (["train", "val", "valid"], "more than one held-out split: 'val', 'valid'"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset(str(tables(tmp_path / names[0] / names[1], *names)))


def test_a_label_that_training_lacks_is_named(tmp_path: Path) -> None:
    images = [encoded(0)] * 3
    write_parquet(tmp_path / "train.parquet", {"image": images, "label": [0, 1, 2]})
    write_parquet(tmp_path / "valid.parquet", {"image": images, "label": [0, 3, 1]})
    with pytest.raises(
        UserError, match="label 3 in 'valid' is no class of the training part, whose largest is 2"
    ):
        open_dataset(str(tmp_path))


def test_shards_are_splits_by_the_same_names(tmp_path: Path) -> None:
    write(tmp_path / "in", *split("train"), *split("valid"), *split("test"))
    for name in ("train", "valid", "test"):
        prepare(
            open_dataset(str(tmp_path / "in" / name), holdout=0).train,
            tmp_path / "out" / "deep" / name.upper(),
        )
    for root in (tmp_path / "out", tmp_path / "out" / "deep"):
        dataset = open_dataset(str(root))
        assert (values(dataset.train), values(dataset.val)) == ({0, 1}, {2, 3})
        assert told(dataset)[0].startswith(
            "photos: 6 images to train on (TRAIN), 6 images held out (VALID), not used: TEST (prepared shards); "
        )
    (tmp_path / "out" / "deep" / "TRAIN").rename(tmp_path / "out" / "deep" / "part")
    (tmp_path / "out" / "deep" / "TEST").rename(tmp_path / "out" / "deep" / "more")
    (tmp_path / "out" / "deep" / "VALID").rename(tmp_path / "out" / "deep" / "some")
    with pytest.raises(
        UserError, match=r"holds 3 prepared sets \(deep/more/, deep/part/, deep/some/\); give one of them"
    ):
        open_dataset(str(tmp_path / "out"))


def test_shards_of_other_classes_are_refused(tmp_path: Path) -> None:
    for name, classes in (("train", ["cat", "dog"]), ("val", ["cow", "dog"])):
        write(tmp_path / "in" / name, *classes)
        prepare(open_dataset(str(tmp_path / "in" / name), holdout=0).train, tmp_path / "out" / name)
    with pytest.raises(
        UserError, match=r"classes of 'val' differ .*: 1 classes \(cow\), not 2 classes \(cat, dog\)"
    ):
        open_dataset(str(tmp_path / "out"))


def test_a_foreign_dataset_json_is_no_shard(tmp_path: Path) -> None:
    write(tmp_path, "00000", "00001")
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    assert open_dataset(str(tmp_path), holdout=0).train.info.num_samples == 6


def test_on_an_object_store_too(s3: tuple[object, str], tmp_path: Path) -> None:
    client, query = s3
    local = write(
        tmp_path, *(f"a b/{name}" for part in ("Train", "valid", "unlabeled") for name in split(part))
    )
    for file in local.rglob("*.png"):
        with client.open_output_stream(f"pictures/layout/{file.relative_to(local)}") as stream:
            stream.write(file.read_bytes())
    dataset = open_dataset(f"s3://pictures/layout?{query}")
    assert (values(dataset.train), values(dataset.val)) == ({0, 1}, {2, 3})
    assert dataset.train.info.digest == open_dataset(str(local)).train.info.digest
    assert np.array_equal(dataset.val.labels(), [0, 0, 0, 1, 1, 1])
    assert "--data s3://pictures/layout/a b/unlabeled" in dataset.warnings[0]
    (part,) = dataset.unused
    assert values(open_dataset(part.uris[0], holdout=0).train) == {4, 5}
