"""Parquet as many tools write it: every type of images and labels, files that differ, folders that are columns."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.data.sources import row_groups
from ssl_ray.data.sources.parquet import ParquetSource
from ssl_ray.errors import UserError
from tests.data.test_source import encoded, numbers, write_folder

IMAGES = [encoded(i, suffix=".bmp") for i in range(6)]  # all of one size, in bytes too
ONE = len(IMAGES[0])
LISTS = [list(image) for image in IMAGES]
SIGNED = [list(np.frombuffer(image, np.int8)) for image in IMAGES]


def write(path: Path, row_group_size: int | None = None, metadata: Any = None, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


def whole(path: Path | str, **options: Any) -> ParquetSource:
    source = open_dataset(str(path), holdout=0, **options).train
    assert isinstance(source, ParquetSource)
    return source


def labels(path: Path | str, **options: Any) -> list[int] | None:
    found = whole(path, **options).labels()
    return None if found is None else found.tolist()


def struct(values: Any) -> Any:
    return pa.StructArray.from_arrays([pa.array(["x.bmp"] * len(values)), values], ["path", "bytes"])


# Types of images


@pytest.mark.parametrize(
    "values",
    [
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        pa.array(IMAGES, pa.binary_view()),
        pa.array(IMAGES, pa.binary(ONE)),
        pa.array(IMAGES, pa.binary()).dictionary_encode(),
        pa.array(LISTS, pa.list_(pa.uint8())),
        pa.array(LISTS, pa.large_list(pa.uint8())),
        pa.array(LISTS, pa.list_(pa.uint8(), ONE)),
        pa.array(LISTS, pa.list_view(pa.uint8())),
        pa.array(SIGNED, pa.list_(pa.int8())),
        pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "image", "ours"), pa.array(IMAGES)),
        struct(pa.array(IMAGES, pa.binary())),
        struct(pa.array(IMAGES, pa.large_binary())),
        struct(pa.array(IMAGES, pa.binary_view())),
        struct(pa.array(LISTS, pa.list_(pa.uint8()))),
    ],
    ids=lambda values: str(values.type)[:40],
)
def test_images_are_bytes_however_they_are_stored(tmp_path: Path, values: Any) -> None:
    # pyarrow writes no views inside a struct to several row groups.
    size = None if "binary_view" in str(values.type) else 4
    write(tmp_path / "a.parquet", image=values, row_group_size=size)
    source = whole(tmp_path)
    order = np.array([5, 0, 3, 3])
    assert source.read(order) == [IMAGES[i] for i in order]
    assert {type(image) for image in source.read(order)} == {bytes}


def test_a_missing_image_says_so(tmp_path: Path) -> None:
    for i, kind in enumerate([pa.binary(), pa.binary_view(), pa.list_(pa.uint8())]):
        values = pa.array([LISTS[0] if pa.types.is_list(kind) else IMAGES[0], None], kind)
        missing = whole(write(tmp_path / f"{i}.parquet", image=values)).read(np.array([1]))[0]
        assert missing == b""
        assert missing.reason == "the image is missing (null)"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a.png"] * 6, "'image' holds text, and paths or addresses are not followed"),
        ([[LISTS[0]]] * 6, r"no image column .* image \(list<element: list<element: int64>>\)"),
        (pa.array([IMAGES[:2]] * 6), r"no image column .* image \(list<element: binary>\)"),
        (pa.array([b"0" * 32] * 6, pa.binary(32)), r"image \(fixed_size_binary\[32\]\)"),
    ],
)
def test_what_is_no_image_is_named_with_its_type(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        whole(write(tmp_path / "a.parquet", image=values))


def test_lists_of_numbers_are_images_only_where_nothing_else_is(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", embedding=pa.array(LISTS, pa.list_(pa.uint8())), picture=IMAGES)
    assert whole(file).image_column == "picture"


def test_a_declared_image_is_found(tmp_path: Path) -> None:
    said = {
        "info": {
            "features": {"front": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["a", "b"]}}
        }
    }
    source = whole(write(tmp_path / "a.parquet", None, said, front=IMAGES, back=IMAGES, kind=[0, 1] * 3))
    assert (source.image_column, source.label_column, source.info.class_names) == (
        "front",
        "kind",
        ("a", "b"),
    )


def test_images_of_more_than_2_gib_are_read_from_their_chunks() -> None:
    """Untouched zeros take no memory: together these chunks overflow 32-bit offsets, and `take` of them fails."""
    size = 1_200_000_000
    large = pa.py_buffer(np.zeros(size, np.uint8))
    chunks = []
    for image in IMAGES[:2]:
        offsets = pa.py_buffer(np.array([0, 0, size], np.int32).tobytes())
        chunks += [pa.array([image]), pa.Array.from_buffers(pa.binary(), 2, [None, offsets, large])]
    column = pa.chunked_array(chunks)
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        column.take(pa.array([0, 3]))
    assert [row_groups.encoded(column[i]) for i in (3, 0, 1)] == [IMAGES[1], IMAGES[0], b""]


@pytest.mark.parametrize("inside", [False, True])
def test_a_row_group_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    """Of what is inside a struct pyarrow reads no more than 2 GiB at once."""
    monkeypatch.setattr(row_groups, "BATCH_BYTES", 2 * ONE)
    file = write(tmp_path / "a.parquet", image=struct(pa.array(IMAGES)) if inside else IMAGES)
    images = row_groups.images_of(pq.ParquetFile(file), 0, "image")
    assert images.num_chunks > 1
    assert images.to_pylist() == IMAGES


# Types of labels


@pytest.mark.parametrize(
    "kind",
    [
        *(
            pa.int8(),
            pa.int32(),
            pa.int64(),
            pa.uint8(),
            pa.uint64(),
            pa.float16(),
            pa.float32(),
            pa.float64(),
        ),
        *(pa.decimal32(4, 1), pa.decimal64(8, 1), pa.decimal128(20), pa.decimal256(40, 3)),
    ],
    ids=str,
)
def test_labels_are_numbers_however_they_are_stored(tmp_path: Path, kind: Any) -> None:
    values = [Decimal(i) for i in (0, 1, 2, 2, 1, 0)] if pa.types.is_decimal(kind) else [0, 1, 2, 2, 1, 0]
    if kind == pa.float16():
        values = np.array(values, np.float16)
    source = whole(write(tmp_path / "a.parquet", image=IMAGES, label=pa.array(values, kind)))
    assert source.labels().tolist() == [0, 1, 2, 2, 1, 0]
    assert (source.info.num_classes, source.info.class_names) == (3, None)


NAMES = pa.array(["b", "a", "ü", "b", "a", "a"])


@pytest.mark.parametrize(
    "values",
    [
        *(NAMES.cast(kind) for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary())),
        *(
            NAMES.cast(kind).dictionary_encode()
            for kind in (pa.string(), pa.large_string(), pa.large_binary())
        ),
        pa.ExtensionArray.from_storage(pa.json_(pa.string()), NAMES),
    ],
    ids=lambda values: str(values.type),
)
def test_labels_are_names_however_they_are_stored(tmp_path: Path, values: Any) -> None:
    source = whole(write(tmp_path / "a.parquet", image=IMAGES, label=values))
    assert source.labels().tolist() == [1, 0, 2, 1, 0, 0]
    assert source.info.class_names == ("a", "b", "ü")


def test_truth_and_extensions_are_labels(tmp_path: Path) -> None:
    values = [True, False, True, True, False, False]
    eight = pa.ExtensionArray.from_storage(pa.bool8(), pa.array(values).cast(pa.int8()))
    for i, label in enumerate([pa.array(values), eight]):
        assert labels(write(tmp_path / f"{i}.parquet", image=IMAGES, label=label)) == [1, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (pa.array([0] * 6, pa.date32()), r"has type date32\[day\], which is a time, no class"),
        (pa.array([0] * 6, pa.timestamp("us")), r"has type timestamp\[us\], which is a time"),
        (pa.array([[1]] * 6), r"has type list<element: int64>, which can hold several labels"),
        (pa.array([{"a": 1}] * 6), r"has type struct<a: int64>, which holds fields"),
        (
            pa.array([0.0, 1, 0.37, 1, 1, 1]),
            r"a.parquet \(double\) holds values that are no class: the first is 0.37",
        ),
        (pa.array([0.0, 1, float("inf"), 1, 1, 1]), "no class: the first is inf"),
        (pa.array([Decimal("1.5")] * 6), r"\(decimal128\(2, 1\)\) holds values that are no class"),
        (pa.array([b"\xff"] * 6), r"\(binary\) holds values that are no class"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_what_is_no_class_is_named_with_the_reason(tmp_path: Path, values: Any, why: str) -> None:
    file = write(tmp_path / "a.parquet", image=IMAGES, label=values)
    source = whole(file)
    assert source.labels() is None
    with pytest.raises(AssertionError, match=f"label column 'label'.*{why}"):
        raise AssertionError(source.note)
    with pytest.raises(UserError, match=f"label_column: 'label'.*{why}") as caught:
        whole(file, label_column="label")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, None, 1, 0, 1],
        [0, 1, -1, 1, 0, 1],
        pa.array([0, 1, 2**63 + 1, 1, 0, 1], pa.uint64()),
        [0.0, 1.0, float("nan"), 1.0, 0.0, 1.0],
        [0.0, 1.0, 1e300, 1.0, 0.0, 1.0],
        ["a", "b", None, "a", "b", "a"],
    ],
)
def test_labels_of_some_images_only_are_named(tmp_path: Path, values: Any) -> None:
    source = whole(write(tmp_path / "a.parquet", image=IMAGES, label=values))
    assert source.labels() is None
    assert source.note == (
        "label column 'label': 1 of 6 are missing, negative or huge, the first in a.parquet: taken as unlabelled"
    )


def test_a_column_without_labels_is_named(tmp_path: Path) -> None:
    source = whole(write(tmp_path / "a.parquet", image=IMAGES, label=pa.nulls(6)))
    assert source.labels() is None
    assert "6 of 6 are missing" in source.note


def test_what_else_could_be_the_labels_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", image=IMAGES, Category=[1] * 6, label=[0] * 6)
    source = whole(file)
    assert source.label_column == "label"
    assert source.note == "labels are column 'label', not 'Category'; label_column chooses"
    assert whole(file, label_column="Category").note == ""
    file = write(
        tmp_path / "b.parquet", image=IMAGES, label=pa.array([0] * 6, pa.date32()), target=[0, 1] * 3
    )
    source = whole(file)
    assert source.label_column == "target"
    assert "label column 'label' has type date32[day]" in source.note
    file = write(tmp_path / "c.parquet", image=IMAGES, species=["a", "b"] * 3, url=["x"] * 6)
    assert "label_column chooses one of 2 columns (species, url)" in whole(file).note


# Files that differ


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (pa.array([0, 1, 0], pa.int32()), pa.array([1, 2, 1], pa.int64())),
        (pa.array([0, 1, 0], pa.int64()), pa.array([1.0, 2.0, 1.0])),
        (pa.array(["0", "1", "0"]), pa.array(["1", "2", "1"], pa.large_string())),
        (pa.array(["0", "1", "0"]).dictionary_encode(), pa.array(["1", "2", "1"])),
        (pa.array(["0", "1", "0"], pa.string_view()), pa.array([b"1", b"2", b"1"])),
    ],
    ids=lambda values: str(values.type),
)
def test_labels_of_one_meaning_are_read_from_files_that_differ(
    tmp_path: Path, first: Any, other: Any
) -> None:
    write(tmp_path / "a.parquet", image=IMAGES[:3], label=first)
    write(tmp_path / "b.parquet", label=other, more=[1, 2, 3], image=IMAGES[3:])  # in another order, too
    source = whole(tmp_path)
    assert source.labels().tolist() == [0, 1, 0, 1, 2, 1]
    assert source.info.num_classes == 3
    assert numbers(source) == list(range(6))


@pytest.mark.parametrize(
    ("first", "other", "message"),
    [
        ([0, 1, 0], ["a", "b", "a"], r"numbers in a.parquet \(int64\) and names in b.parquet \(string\)"),
        (["a", "b", "a"], [0, 1, 0], r"names in a.parquet \(string\) and numbers in b.parquet \(int64\)"),
        (
            [0, 1, 0],
            [True, False, True],
            r"numbers in a.parquet \(int64\) and true and false in b.parquet \(bool\)",
        ),
        (
            [0, 1, 0],
            [[1], [1], [1]],
            r"type list<element: int64> in 'b.parquet', .* unlike in 'a.parquet' \(int64\)",
        ),
    ],
)
def test_labels_that_cannot_be_compared_are_refused_by_both_files(
    tmp_path: Path, first: Any, other: Any, message: str
) -> None:
    write(tmp_path / "a.parquet", image=IMAGES[:3], label=first)
    write(tmp_path / "b.parquet", image=IMAGES[3:], label=other)
    with pytest.raises(UserError, match=message) as caught:
        whole(tmp_path)
    assert "\n" not in str(caught.value)
    assert labels(tmp_path, label_column="") is None, "who needs none leaves them out"


@pytest.mark.parametrize("label", [pa.nulls(3), pa.array([None] * 3, pa.string()), None])
def test_a_file_without_labels_leaves_all_unlabelled_and_is_named(tmp_path: Path, label: Any) -> None:
    write(tmp_path / "a.parquet", image=IMAGES[:3], label=[0, 1, 0])
    write(tmp_path / "b.parquet", image=IMAGES[3:], **({} if label is None else {"label": label}))
    for name in ("a.parquet", "c.parquet"):  # before the other and after it
        (tmp_path / "a.parquet").rename(tmp_path / name)
        source = whole(tmp_path)
        assert source.labels() is None
        assert "3 of 6 are missing, negative or huge, the first in b.parquet" in source.note
    if label is None:
        with pytest.raises(UserError, match=r"label_column: .*b.parquet' has no column 'label', others have"):
            whole(tmp_path, label_column="label")


def class_labels(*names: str) -> dict[str, Any]:
    return {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}


def test_numbers_are_compared_by_their_names(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", None, class_labels("cat", "dog"), image=IMAGES[:3], label=[0, 1, 0])
    write(tmp_path / "b.parquet", None, class_labels("dog", "cow"), image=IMAGES[3:5], label=[0, 1])
    write(tmp_path / "c.parquet", image=IMAGES[5:], label=["cat"])
    source = whole(tmp_path)
    assert source.info.class_names == ("cat", "cow", "dog")
    assert source.labels().tolist() == [0, 2, 0, 2, 1, 0]
    write(tmp_path / "d.parquet", None, class_labels("dog"), image=IMAGES[3:5], label=[0, 1])
    with pytest.raises(UserError, match=r"label 1 of d.parquet \(int64\) has no name"):
        whole(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        pa.array(IMAGES[3:], pa.large_binary()),
        pa.array(IMAGES[3:], pa.binary_view()),
        struct(pa.array(IMAGES[3:])),
        pa.array(LISTS[3:], pa.list_(pa.uint8())),
    ],
    ids=lambda values: str(values.type),
)
def test_images_are_read_from_files_that_differ(tmp_path: Path, other: Any) -> None:
    write(tmp_path / "a.parquet", image=IMAGES[:3])
    write(tmp_path / "b.parquet", image=other)
    assert numbers(whole(tmp_path)) == list(range(6))
    (tmp_path / "a.parquet").rename(tmp_path / "c.parquet")
    assert numbers(whole(tmp_path)) == [3, 4, 5, 0, 1, 2]


def test_images_of_one_file_only_are_missing_or_refused_in_the_other(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=pa.nulls(3))
    write(tmp_path / "b.parquet", image=IMAGES[3:])
    assert whole(tmp_path).read(np.arange(6)) == [b""] * 3 + IMAGES[3:]
    write(tmp_path / "c.parquet", image=["x.png"] * 3)
    with pytest.raises(
        UserError, match=r"holds images in 'b.parquet' \(binary\) and none in 'c.parquet' \(string\)"
    ):
        whole(tmp_path)
    (tmp_path / "c.parquet").unlink()
    write(tmp_path / "d.parquet", label=[1, 2])
    with pytest.raises(
        UserError, match=r"d.parquet' has no column 'image', which holds the images of 'b.parquet'"
    ):
        whole(tmp_path)


def test_what_is_empty_says_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=pa.nulls(0), label=pa.nulls(0))
    pq.write_table(pa.table({}), tmp_path / "b.parquet")
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(tmp_path / "c.parquet", schema) as writer:
        for part in (IMAGES[:2], [], IMAGES[2:]):
            writer.write_table(pa.table({"image": part, "label": list(range(len(part)))}, schema))
    source = whole(tmp_path)
    assert numbers(source) == list(range(6))
    assert source.labels().tolist() == [0, 1, 0, 1, 2, 3]
    (tmp_path / "d.parquet").touch()
    with pytest.raises(UserError, match=r"d.parquet' is not a readable Parquet file"):
        whole(tmp_path)


# Folders that are columns


def test_folders_of_hive_are_labels(tmp_path: Path) -> None:
    write(tmp_path / "label=ein%20Hund" / "a.parquet", image=IMAGES[:2])
    write(tmp_path / "label=cat%2F1" / "year=2020" / "a.parquet", image=IMAGES[2:])
    source = whole(tmp_path)
    assert source.info.class_names == ("cat/1", "ein Hund")
    assert list(zip(numbers(source), source.labels().tolist(), strict=True)) == [
        *((i, 0) for i in range(2, 6)),
        *((i, 1) for i in range(2)),
    ]
    write(tmp_path / "label=__HIVE_DEFAULT_PARTITION__" / "a.parquet", image=IMAGES[:1])
    source = whole(tmp_path)
    assert source.labels() is None
    assert "1 of 7 are missing, negative or huge, the first in label=__HIVE" in source.note


def test_numbers_of_hive_are_numbers(tmp_path: Path) -> None:
    for i in (0, 2, 10):
        write(tmp_path / f"label={i}" / "a.parquet", image=IMAGES[:1])
    assert labels(tmp_path) == [0, 10, 2]  # in the order of the paths
    write(tmp_path / "label=02" / "a.parquet", image=IMAGES[:1])
    assert whole(tmp_path).info.class_names == ("0", "02", "10", "2")  # `02` is not 2


def test_folders_of_hive_are_columns_like_any_other(tmp_path: Path) -> None:
    write(tmp_path / "species=cat" / "a.parquet", image=IMAGES[:3])
    write(tmp_path / "species=dog" / "a.parquet", image=IMAGES[3:])
    assert "label_column chooses one of 1 columns (species)" in whole(tmp_path).note
    assert labels(tmp_path, label_column="species") == [0, 0, 0, 1, 1, 1]
    # What a file itself says goes before its folder.
    write(tmp_path / "species=dog" / "b.parquet", image=IMAGES[3:], species=["cat", "dog", "eel"])
    assert labels(tmp_path, label_column="species") == [0, 0, 0, 1, 1, 1, 0, 1, 2]


# Parts of a data set


def parts(tmp_path: Path, train: dict[str, Any], val: dict[str, Any]) -> Dataset:
    write(tmp_path / "train" / "a.parquet", image=IMAGES[:3], **train)
    write(tmp_path / "val" / "b.parquet", image=IMAGES[3:5], **val)
    return open_dataset(str(tmp_path))


def test_the_held_out_part_has_the_classes_of_the_training_part(tmp_path: Path) -> None:
    pets = class_labels("cat", "dog")
    swapped = class_labels("dog", "cat")
    three = [0, 1, 1]
    cases: list[tuple[dict[str, Any], dict[str, Any], list[int]]] = [
        ({"label": three, "metadata": pets}, {"label": [0, 1], "metadata": swapped}, [1, 0]),
        ({"label": three, "metadata": pets}, {"label": ["dog", "cat"]}, [1, 0]),
        ({"label": three, "metadata": pets}, {"label": [1, 0]}, [1, 0]),
        ({"label": ["cat", "dog", "dog"]}, {"label": [0, 1], "metadata": swapped}, [1, 0]),
        ({"label": three}, {"label": pa.array([1.0, 0.0])}, [1, 0]),
    ]
    for i, (train, val, expected) in enumerate(cases):
        assert parts(tmp_path / str(i), train, val).val.labels().tolist() == expected


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["a", "b", "a"], [0, 1], "labels by names, 'val' by numbers"),
        ([0, 1, 0], ["a", "b"], "labels by numbers, 'val' by names"),
        ([0, 1, 0], [True, False], "labels by numbers, 'val' by true and false"),
        ([0, 1, 0], [0, 7], "label 7 in 'val' is no class of the training part, whose largest is 1"),
        (["a", "b", "a"], ["a", "c"], r"label 'c' in b.parquet \(string\) is no class of the training part"),
    ],
)
def test_other_classes_in_the_held_out_part_are_refused(
    tmp_path: Path, train: Any, val: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parts(tmp_path, {"label": train}, {"label": val})


def test_class_folders_do_not_go_with_numbers(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.parquet", image=IMAGES[:3], label=[0, 1, 1])
    write_folder(tmp_path / "val", {"a": 2, "b": 2})
    with pytest.raises(UserError, match="labels by numbers, 'val' by names"):
        open_dataset(str(tmp_path))


# Hugging Face


def test_paths_without_bytes_are_named(tmp_path: Path) -> None:
    """As `Dataset.to_parquet` of the `datasets` library (5.2) writes a folder of images."""
    images = [{"bytes": None, "path": f"/home/me/pets/{i}.png"} for i in range(3)]
    column = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    file = write(tmp_path / "a.parquet", None, class_labels("cat", "dog"), image=column, label=[0, 1, 0])
    with pytest.raises(UserError, match=r"paths of images \('/home/me/pets/0.png', ...\) and not") as caught:
        whole(file)
    assert "give the folder of the images instead, or write `ds` with them: from datasets" in str(
        caught.value
    )
