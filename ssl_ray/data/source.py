"""Opens whatever holds images: an embedded set, a folder, Parquet files, prepared shards, at a path or a URI."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ssl_ray.data.sources.base import Dataset, DatasetInfo, Source, Subset, Unused, counted
from ssl_ray.data.sources.classes import require_same_classes
from ssl_ray.data.sources.embedded import digits, fashion
from ssl_ray.data.sources.folder import FolderSource, is_image
from ssl_ray.data.sources.foreign import foreign, kept_by_others
from ssl_ray.data.sources.layout import Layout, Split, file_layout, folder_layout, split_of
from ssl_ray.data.sources.location import Location, is_uri
from ssl_ray.data.sources.parquet import ParquetSource
from ssl_ray.data.sources.shards import INDEX, MANIFEST, ShardSource
from ssl_ray.data.sources.torchvision import SCHEME, open_torchvision
from ssl_ray.errors import UserError, nearest

__all__ = ["Dataset", "DatasetInfo", "Source", "Subset", "open_dataset"]

EMBEDDED_SETS = {"fashion": fashion, "digits": digits}
KINDS = "allowed: fashion, digits, torchvision:NAME, a folder of images, Parquet files or prepared shards, s3://..., gs://..."

PARQUET = ".parquet"
Columns = dict[str, str | None]
ClassNames = tuple[str, ...] | None
Listing = list[tuple[str, int | None]]
FileSource = FolderSource | ParquetSource | ShardSource


def open_dataset(
    uri: str | Location,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    holdout: float = 0.1,
) -> Dataset:
    """Opens a data set and splits off what is held out for evaluation.

    uri: `fashion`, `digits` (`./fashion` for a folder of that name), `torchvision:NAME`, or a path or pyarrow.fs URI
    of an image folder, a Parquet file, a folder of Parquet files or a shard folder. Folders or Parquet files named
    after splits are these: `train`, and held out `val` or else `test` (see `layout`). Without one to hold out and with
    labels, a share `holdout` of the images is held out, the same ones every time; without labels nothing is.
    image_column, label_column: of Parquet, found by type and name unless given.
    Raises UserError when there is nothing to read, naming what is allowed, or when it cannot be told what is a split.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"holdout: got {holdout}, must be at least 0 and below 1")
    columns = {"image_column": image_column, "label_column": label_column}
    if isinstance(uri, Location):
        dataset = _open_files(uri, str(uri), columns)
    elif uri in EMBEDDED_SETS:
        dataset = EMBEDDED_SETS[uri]()
    elif uri.startswith(SCHEME):
        dataset = open_torchvision(uri)
    else:
        dataset = _open_files(Location.of(uri), uri, columns)
    for field, column in columns.items():
        if column is not None and not isinstance(dataset.train, ParquetSource):
            raise UserError(
                f"{field}: got {column!r}, but {str(uri)!r} is not Parquet and has no columns; leave it out"
            )
    return _hold_out(_judged(dataset), holdout)


def _judged(dataset: Dataset) -> Dataset:
    """The data set, without a held-out part that cannot judge. Raises UserError where that has other classes."""
    if dataset.val is None or dataset.train.info.num_classes is None:
        return dataset
    if dataset.val.info.num_classes is None:
        note = _join(dataset.note, "the held-out part has no labels and is not used")
        return replace(dataset, val=None, note=note, names=(dataset.names[0], ""))
    require_same_classes(
        dataset.train, dataset.val, repr(dataset.names[1]) if dataset.names[1] else "the held-out part"
    )
    return dataset


def _hold_out(dataset: Dataset, share: float) -> Dataset:
    info = dataset.train.info
    count = max(1, round(info.num_samples * share))
    if info.num_classes is None:
        return replace(dataset, note=_join(dataset.note, "no labels: no kNN accuracy"))
    if dataset.val is not None or share == 0:
        return dataset
    if count >= info.num_samples:
        return replace(dataset, note=_join(dataset.note, "no held-out images: no kNN accuracy"))
    note = f"held out {count} of {info.num_samples} images for evaluation, the same ones every time"
    return replace(
        dataset,
        train=Subset(dataset.train, count, info.num_samples, shuffled=True),
        val=Subset(dataset.train, 0, count, shuffled=True),
        note=_join(dataset.note, note),
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
        return Dataset(source := _open_listing(root, [("", 0)], columns, None, root.name), None, source.note)
    listing = root.list(recursive=True)
    if reason := kept_by_others(root, [entry for entry in listing if "/" not in entry[0]]):
        raise UserError(reason)
    files = {path for path, size in listing if size is not None}
    # Others write a dataset.json, too, but no index beside it.
    shards = [
        path for path in files if path == (folder := _folder_of(path)) + MANIFEST and folder + INDEX in files
    ]
    if MANIFEST in shards:
        return Dataset(ShardSource(root), None)
    images = [path for path, size in listing if size is not None and is_image(path)]
    if images or shards:
        layout = folder_layout(sorted(images + shards + _tables_of_splits(files, images)), root)
    else:
        layout = _in_folders(
            file_layout(sorted(path for path in files if path.endswith(PARQUET)), root), listing
        )
    if layout.train is None:
        if shards:
            sets = counted("prepared sets", sorted(map(_folder_of, shards)))
            raise UserError(f"data: {str(root)!r} holds {sets}; give one of them")
        source = _open_listing(root, listing, columns, None, root.name)
        return Dataset(source, None, source.note, layout.warnings)
    train = _open_split(root, layout.train, listing, columns, None)
    held_out = layout.held_out
    val = None if held_out is None else _open_split(root, held_out, listing, columns, train.class_names)
    notes = dict.fromkeys(part.note for part in (train, val) if part is not None)
    names = (layout.train.name, held_out.name if held_out else "")
    unused = tuple(_unused(root, split, listing) for split in layout.unused)
    return Dataset(train, val, _join(*notes), layout.warnings, names, unused)


def _tables_of_splits(files: Iterable[str], images: Sequence[str]) -> list[str]:
    """Parquet files in folders that are splits by name and hold no images: beside images they are a part, too."""
    found = []
    for path in files:
        folders = path.split("/")[:-1]
        named = next((i for i, name in enumerate(folders) if split_of(name)), None)
        if path.endswith(PARQUET) and named is not None:
            inside = "/".join(folders[: named + 1]) + "/"
            found += [] if any(image.startswith(inside) for image in images) else [path]
    return found


def _folder_of(path: str) -> str:
    """With a slash at its end; "" for the top."""
    return path[: path.rfind("/") + 1]


def _in_folders(layout: Layout, listing: Listing) -> Layout:
    """Parquet files in nothing but folders `train`, `val`, `validation` and `test`, as splits that are these folders.

    The digest of a run's data knows files below the split's folder there, and below the whole elsewhere.
    """
    tops = {path for path, size in listing if size is None and "/" not in path}
    if not (layout.train and "train" in tops and tops <= {"train", "val", "validation", "test"}):
        return layout

    def as_folder(split: Split | None) -> Split | None:
        inside = (
            split and split.name in tops and all(path.startswith(f"{split.name}/") for path in split.paths)
        )
        return Split(split.name, (split.name,), True) if split and inside else split

    return replace(
        layout,
        train=as_folder(layout.train),
        held_out=as_folder(layout.held_out),
        unused=tuple(filter(None, map(as_folder, layout.unused))),
    )


def _open_split(
    root: Location, split: Split, listing: Listing, columns: Columns, class_names: ClassNames
) -> FileSource:
    if not split.folder:
        files = set(split.paths)
        part = [entry for entry in listing if entry[0] in files]
        return _open_listing(root, part, columns, class_names, root.name)
    (folder,) = split.paths
    start = len(folder) + 1
    part = [(path[start:], size) for path, size in listing if path.startswith(f"{folder}/")]
    if {MANIFEST, INDEX} <= {path for path, _ in part}:
        return ShardSource(root / folder)
    return _open_listing(root / folder, part, columns, class_names, root.name)


def _unused(root: Location, split: Split, listing: Listing) -> Unused:
    uris = tuple(root / path for path in split.places or split.paths)
    if not split.folder:
        what = "images" if is_image(split.paths[0]) else "files"
        return Unused(split.name, f"{len(split.paths):,} {what}", uris)
    files = [path for path, size in listing if size is not None and path.startswith(f"{split.paths[0]}/")]
    images, tables = sum(map(is_image, files)), sum(path.endswith(PARQUET) for path in files)
    shards = f"{split.paths[0]}/{MANIFEST}" in files
    count = "prepared shards" if shards else f"{images:,} images" if images else f"{tables} files"
    return Unused(split.name, count, uris)


def _open_listing(
    root: Location, listing: Listing, columns: Columns, class_names: ClassNames, name: str
) -> FileSource:
    """One source out of files: images if there are any, else Parquet."""
    tables = [path for path, size in listing if size is not None and (path or root.name).endswith(PARQUET)]
    # Such names are how Spark and its kind call what is no data.
    tables = [path for path in tables if not any(part.startswith("_") for part in path.split("/"))]
    if tables and not any(is_image(path) for path, _ in listing):
        return ParquetSource(root, tables, name=name, class_names=class_names, **columns)
    if not any(is_image(path) for path, _ in listing) and (reason := foreign(root, listing)):
        raise UserError(reason)
    if listing == [("", 0)]:
        raise UserError(f"data: {str(root)!r} is a file of another kind than Parquet; {KINDS}")
    return FolderSource(root, listing, name=name, class_names=class_names)
