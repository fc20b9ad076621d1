"""Opens whatever holds images: an embedded set, a folder, Parquet files, prepared shards, at a path or a URI."""

import re
from dataclasses import replace

from ssl_ray.data.sources.base import Dataset, DatasetInfo, Source, Subset
from ssl_ray.data.sources.classes import require_same_classes
from ssl_ray.data.sources.embedded import digits, fashion
from ssl_ray.data.sources.folder import FolderSource, is_image
from ssl_ray.data.sources.foreign import foreign, kept_by_others
from ssl_ray.data.sources.location import Location, is_uri
from ssl_ray.data.sources.parquet import ParquetSource
from ssl_ray.data.sources.shards import MANIFEST, ShardSource
from ssl_ray.data.sources.torchvision import SCHEME, open_torchvision
from ssl_ray.errors import UserError, nearest

__all__ = ["Dataset", "DatasetInfo", "Source", "Subset", "open_dataset"]

EMBEDDED_SETS = {"fashion": fashion, "digits": digits}
TRAIN = "train"
# The first one present is the held-out part.
HELD_OUT = ("val", "validation", "test")
KINDS = "allowed: fashion, digits, torchvision:NAME, a folder of images, Parquet files or prepared shards, s3://..., gs://..."

PARQUET = ".parquet"
Columns = dict[str, str | None]
ClassNames = tuple[str, ...] | None
FileSource = FolderSource | ParquetSource | ShardSource


def open_dataset(
    uri: str, *, image_column: str | None = None, label_column: str | None = None, holdout: float = 0.1
) -> Dataset:
    """Opens a data set and splits off what is held out for evaluation.

    uri: `fashion`, `digits` (`./fashion` for a folder of that name), `torchvision:NAME`, or a path or pyarrow.fs URI
    of an image folder, a Parquet file, a folder of Parquet files or a shard folder. Sub-folders `train` and `val`
    (or `validation`, `test`), or Parquet files whose names begin so, are the split. Without such a split and with
    labels, a share `holdout` of the images is held out, the same ones every time; without labels nothing is.
    image_column, label_column: of Parquet, found by type and name unless given.
    Raises UserError when there is nothing to read, naming what is allowed.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"holdout: got {holdout}, must be at least 0 and below 1")
    columns = {"image_column": image_column, "label_column": label_column}
    if uri in EMBEDDED_SETS:
        dataset = EMBEDDED_SETS[uri]()
    elif uri.startswith(SCHEME):
        dataset = open_torchvision(uri)
    else:
        dataset = _open_files(Location.of(uri), uri, columns)
    for field, column in columns.items():
        if column is not None and not isinstance(dataset.train, ParquetSource):
            raise UserError(
                f"{field}: got {column!r}, but {uri!r} is not Parquet and has no columns; leave it out"
            )
    if dataset.val is not None and dataset.val.info.num_classes is None and dataset.train.info.num_classes:
        unused = "the held-out part has no labels and is not used"
        dataset = Dataset(dataset.train, None, _join(dataset.note, unused))
    return dataset if dataset.val is not None else _hold_out(dataset, holdout)


def _hold_out(dataset: Dataset, share: float) -> Dataset:
    info = dataset.train.info
    count = max(1, round(info.num_samples * share))
    if info.num_classes is None or share == 0 or count >= info.num_samples:
        why = "no labels" if info.num_classes is None else "no held-out images"
        return replace(dataset, note=_join(dataset.note, f"{why}: no kNN accuracy"))
    note = f"held out {count} of {info.num_samples} images for evaluation, the same ones every time"
    return Dataset(
        Subset(dataset.train, count, info.num_samples, shuffled=True),
        Subset(dataset.train, 0, count, shuffled=True),
        _join(dataset.note, note),
    )


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _open_files(root: Location, uri: str, columns: Columns) -> Dataset:
    if not root.exists():
        if reason := foreign(root, []):
            raise UserError(reason)
        close = "" if is_uri(uri) else nearest(uri, EMBEDDED_SETS)
        hint = f"{close} " if close.startswith("did") else ""
        raise UserError(f"data: no such file or folder: {uri!r}; {hint}{KINDS}")
    if root.is_file():
        return _dataset(_open_listing(root, [("", 0)], columns, None), None)
    top = root.list(recursive=False)
    if reason := kept_by_others(root, top):
        raise UserError(reason)
    folders = {path for path, size in top if size is None}
    if TRAIN in folders and folders <= {TRAIN, *HELD_OUT}:
        train = _open_folder(root, TRAIN, columns, None)
        held_out = next((name for name in HELD_OUT if name in folders), None)
        return _dataset(train, _open_folder(root, held_out, columns, train.class_names) if held_out else None)
    if MANIFEST in dict(top):
        return _dataset(ShardSource(root), None)
    listing = root.list(recursive=True)
    parts = {part: [entry for entry in listing if _part(entry[0]) == part] for part in (TRAIN, *HELD_OUT)}
    if parts[TRAIN] and not any(is_image(path) for path, _ in listing):  # Parquet files of several splits.
        train = _open_listing(root, parts[TRAIN], columns, None)
        held_out = next((name for name in HELD_OUT if parts[name]), None)
        return _dataset(
            train, _open_listing(root, parts[held_out], columns, train.class_names) if held_out else None
        )
    return _dataset(_open_listing(root, listing, columns, None), None)


def _open_folder(root: Location, part: str, columns: Columns, class_names: ClassNames) -> FileSource:
    folder = root / part
    if (folder / MANIFEST).exists():
        return ShardSource(folder)
    return _open_listing(folder, folder.list(recursive=True), columns, class_names, name=root.name)


def _open_listing(
    root: Location,
    listing: list[tuple[str, int | None]],
    columns: Columns,
    class_names: ClassNames,
    *,
    name: str | None = None,
) -> FileSource:
    """One source out of files: images if there are any, else Parquet."""
    tables = [path for path, size in listing if size is not None and (path or root.name).endswith(PARQUET)]
    # Such names are how Spark and its kind call what is no data.
    tables = [path for path in tables if not any(part.startswith("_") for part in path.split("/"))]
    if tables and not any(is_image(path) for path, _ in listing):
        return ParquetSource(root, tables, name=name or root.name, class_names=class_names, **columns)
    if not any(is_image(path) for path, _ in listing) and (reason := foreign(root, listing)):
        raise UserError(reason)
    if listing == [("", 0)]:
        raise UserError(f"data: {str(root)!r} is a file of another kind than Parquet; {KINDS}")
    return FolderSource(root, listing, name=name or root.name, class_names=class_names)


def _dataset(train: FileSource, val: FileSource | None) -> Dataset:
    require_same_classes(train, val)
    parts = (train,) if val is None else (train, val)
    return Dataset(train, val, _join(*dict.fromkeys(part.note for part in parts)))


def _part(path: str) -> str | None:
    """The split that a Parquet file belongs to by its name: `train-00000-of-00004.parquet`, `data/val.parquet`."""
    found = re.match(
        f"({'|'.join((TRAIN, *HELD_OUT))})(?![a-z]).*{re.escape(PARQUET)}$", path.rpartition("/")[2]
    )
    return found[1] if found else None
