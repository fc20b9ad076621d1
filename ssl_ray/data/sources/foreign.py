"""Data sets in formats of other tools, which are not read: what they are, and the command that converts them."""

import json
import re
import shlex
import tarfile
from collections.abc import Sequence
from itertools import islice

from ssl_ray.data.sources.location import Location

_SPLIT = re.compile(r"(train|val|validation|valid|test)(?![a-z])", re.IGNORECASE)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TAR = (".tar", ".tar.gz", ".tgz")
# Members of a tar archive that tell what it is.
_FEW = 64
# What lies beside an image of the same name in WebDataset.
_BESIDE = {"cls", "json", "txt", "id", "index", "cls.txt", "npy", "pyd", "pickle"}
_PICTURES = {"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "gif", "avif", "jp2", "image.jpg"}
_OTHERS = {
    ".zip": "zip archives; unpack them",
    ".tfrecord": "TFRecord files; write their images to a folder, or to Parquet",
    ".mds": "shards of MosaicML Streaming; write their images to a folder, or to Parquet",
    ".beton": "FFCV files; give what they were made from",
    ".mdb": "an LMDB database; write its images to a folder, or to Parquet",
    ".h5": "HDF5 files; write their images to a folder, or to Parquet",
    ".hdf5": "HDF5 files; write their images to a folder, or to Parquet",
    ".npz": "NumPy arrays; write their images to a folder as PNG",
    ".npy": "NumPy arrays; write their images to a folder as PNG",
    ".arrow": "Arrow files; write them to Parquet with pyarrow.parquet.write_table",
    ".feather": "Arrow files; write them to Parquet with pyarrow.parquet.write_table",
}

Listing = Sequence[tuple[str, int | None]]


def kept_by_others(root: Location, top: Listing) -> str | None:
    """What a folder is whose files must not be read one by one, and how to convert it; None for any other.

    top: its own files and folders.
    """
    names = {path for path, _ in top}
    if "dataset_dict.json" in names:
        return _saved(root, several=True)
    if {"state.json", "dataset_info.json"} <= names:
        return _saved(root, several=False)
    iceberg = {"metadata", "data"} <= names and any(
        path.endswith(".metadata.json") for path, _ in (root / "metadata").list(recursive=False)
    )
    if "_delta_log" in names or iceberg:
        kind = "Iceberg" if iceberg else "Delta Lake"
        return (
            f"data: {str(root)!r} is a table of {kind}, whose files also hold rows that "
            "were deleted or replaced since; write its rows to Parquet of their own"
            + ("" if iceberg else f": {_delta(root)}")
        )
    return None


def foreign(root: Location, listing: Listing) -> str | None:
    """What is there in place of images, and how to convert it, one line; None for what is not known.

    listing: what `root.list` gave; [("", 0)] for a file, [] for nothing: then `root` may still be the brace notation of
    many files.
    """
    if reason := kept_by_others(root, listing):
        return reason
    files = {path for path, size in listing if size is not None}
    tars = [path for path in sorted(files) if (path or root.name).lower().endswith(_TAR)]
    if tars or (not listing and root.name.endswith(_TAR) and _RANGE.search(root.name)):
        return _tars(root, tars)
    if any(re.fullmatch(r"shard-\d+\.arrow(\.tmp)?", path) for path in files):
        return f"data: {str(root)!r} holds shards of a `ssl-ray data prepare` that was stopped; run it again"
    for path in sorted(files):
        for suffix, what in _OTHERS.items():
            if (path or root.name).lower().endswith(suffix):
                return f"data: {str(root)!r} holds {what}"
    return None


def _delta(root: Location) -> str:
    code = (
        "from deltalake import DeltaTable; import pyarrow.parquet as pq; "
        f'pq.write_table(DeltaTable({json.dumps(str(root))}).to_pyarrow_table(), "{root.name}.parquet", '
        "row_group_size=1000)"
    )
    return f"python -c {shlex.quote(code)}, then --data {shlex.quote(root.name + '.parquet')}"


def _saved(root: Location, *, several: bool) -> str:
    start = f"from datasets import load_from_disk; d = load_from_disk({json.dumps(str(root))})"
    return _convert(
        f"{str(root)!r} is what save_to_disk of Hugging Face's `datasets` wrote", root, start, several
    )


def _tars(root: Location, tars: list[str]) -> str:
    first = root / tars[0] if tars and tars[0] else root
    names = _members(first) if tars else []
    if tars and not _is_webdataset(names):
        into = "FOLDER"
        if tars[0] and not any("/" in name.removeprefix("./") for name in names):
            into = "FOLDER/$(basename $t)"  # a class each
        unpack = f"mkdir -p {into} && tar -xf {'$t' if tars[0] else shlex.quote(str(root))} -C {into}"
        if tars[0]:
            unpack = f"for t in {shlex.quote(str(root))}/*.tar; do {unpack}; done"
        return f"data: {str(first)!r} is a tar archive, which is not read; unpack it: {unpack}"
    where = _RANGE.sub("*", str(root))
    if tars and tars[0]:
        depth = "/**" if any("/" in path for path in tars) else ""
        where = f"{where}{depth}/*{'.tar' if tars[0].endswith('.tar') else ''}"
    found = (_SPLIT.match(path.rpartition("/")[2]) for path in tars)
    splits = sorted({match[1] for match in found if match})
    if len(splits) > 1:
        files = {
            "validation" if (name := split.lower()) == "valid" else name: re.sub(
                r"\*(?=[^*]*$)", f"{split}[!a-z]*", where, count=1
            )
            for split in splits
        }
        load = f'load_dataset("webdataset", data_files={json.dumps(files)})'
    else:
        load = f'load_dataset("webdataset", data_files={json.dumps(where)}, split="train")'
    start = f"from datasets import load_dataset; d = {load}"
    return _convert(f"{str(root)!r} holds shards of WebDataset", root, start, len(splits) > 1)


def _convert(what: str, root: Location, start: str, several: bool) -> str:
    """The line: `start` makes the Hugging Face data set `d`, or, if several, a dict of them by split."""
    out = _RANGE.sub("", root.name).partition(".")[0].rstrip("-_") or "images"
    if several:
        end = (
            f'import os; os.makedirs("{out}-parquet"); '
            f'[p.to_parquet(f"{out}-parquet/{{s}}.parquet") for s, p in d.items()]'
        )
        out = f"{out}-parquet"
    else:
        out = f"{out}.parquet"
        end = f'd.to_parquet("{out}")'
    command = shlex.quote(f"{start}; {end}")
    return f"data: {what}, which is not read; make Parquet of it: python -c {command}, then --data {shlex.quote(out)}"


def _members(file: Location) -> list[str]:
    """The first files of a tar archive; none of what is no such thing."""
    try:
        with file.open() as stream, tarfile.open(fileobj=stream) as archive:
            return [member.name for member in islice(archive, _FEW) if member.isfile()]
    except (OSError, tarfile.TarError, EOFError):
        return []


def _is_webdataset(names: list[str]) -> bool:
    """Whether images and what is said of them lie side by side, under one name and different suffixes."""
    suffixes: dict[str, set[str]] = {}
    for name in names:
        folder, _, last = name.rpartition("/")
        key, _, suffix = last.partition(".")
        suffixes.setdefault(f"{folder}/{key}", set()).add(suffix.lower())
    return any(found & _PICTURES and found & _BESIDE for found in suffixes.values())
