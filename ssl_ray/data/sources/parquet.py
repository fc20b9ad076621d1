"""Images in one Parquet file or a folder of them, read by row group."""

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_ray.data.plan import Int64
from ssl_ray.data.sources import row_groups
from ssl_ray.data.sources.base import DatasetInfo, class_count, digest, median_size
from ssl_ray.data.sources.classes import (
    ADVICE,
    ClassNames,
    Labels,
    NoClasses,
    folder_labels,
    numbered,
    plain,
    unified,
)
from ssl_ray.data.sources.columns import (
    Types,
    class_names_of,
    columns_of,
    declared,
    find_image_column,
    find_label_column,
    holds_images,
    no_class,
    stored,
    types_of,
)
from ssl_ray.data.sources.location import Location
from ssl_ray.data.sources.row_groups import encoded, open_parquet
from ssl_ray.errors import UserError

# What puts the bytes of image files into a Hugging Face data set `ds`.
EMBED = (
    "from datasets.table import embed_table_storage; ds.with_format('arrow').map(embed_table_storage, "
    "batched=True).with_format(None).to_parquet(FILE)"
)
# How Hive and all who write its folders (label=cat/) call a missing value.
_HIVE_MISSING = "__HIVE_DEFAULT_PARTITION__"


class ParquetSource:
    """Rows of `files` below `root`, in order. An image is bytes, or a struct with `bytes` as Hugging Face writes it.

    A folder `key=value`, as Hive and Spark write them, is a column of all files in it. The files may differ in their
    types and in the order of their columns as long as these mean the same.
    To read one image its whole row group is read; the last ones stay in memory (256 MiB a process).
    image_column, label_column: found by type and name unless given; label_column "" leaves labels out. class_names: of
    the training part, for its held-out part. Raises UserError when a file is not Parquet or has no image column.
    """

    def __init__(
        self,
        root: Location,
        files: Sequence[str],
        *,
        name: str,
        image_column: str | None = None,
        label_column: str | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        self.root, self.files = root, tuple(files)
        # One row (file, row group, rows, bytes) for each row group that is not empty. Each file is opened once here: on
        # an object store that takes a while.
        rows, schemas = [], []
        for i in range(len(self.files)):
            rows += self._row_groups(i)
            schemas.append(open_parquet(self._file(i)).schema_arrow)
        groups = np.array(rows, np.int64).reshape(-1, 4)
        groups = groups[groups[:, 2] > 0]
        if not len(groups):
            raise UserError(f"data: {str(root)!r} holds no rows; give Parquet files with at least one image")
        self._groups = groups[:, :2]
        self._starts = np.concatenate([[0], np.cumsum(groups[:, 2])])
        notes = []
        if groups[:, 3].sum() > row_groups.CACHE_BYTES:
            notes.append(
                f"an image of {root} is read with its row group of {int(groups[:, 3].mean()) / 2**20:.0f} MiB; "
                "`ssl-ray data prepare` writes shards with fast random access"
            )

        # A file without rows says nothing, whatever its columns.
        self._used = np.unique(self._groups[:, 0]).tolist()
        types: dict[int, Types] = {i: types_of(schemas[i]) for i in self._used}
        said = {
            kind: dict.fromkeys(name for i in self._used for name in declared(schemas[i], kind))
            for kind in ("Image", "ClassLabel")
        }
        self._column = self._find_images(types, image_column, said["Image"])
        images = next(stored(t[self._column]) for t in types.values() if holds_images(t[self._column]))
        self.image_column = f"{self._column}.bytes" if pa.types.is_struct(images) else self._column
        choice = find_label_column(self._label_types(types), label_column, root, said["ClassLabel"])
        self.label_column = choice.column
        notes += choice.notes
        if label_column:
            self._require_everywhere(label_column, types)
        self.class_names, self.labels_by, labels = class_names, None, None
        if self.label_column is not None:
            try:
                found, self.class_names, self.labels_by = self._read_labels(class_names)
                problem = self._unlabelled(found)
                labels = None if problem else found
            except NoClasses as error:
                if label_column is not None:
                    raise UserError(
                        f"label_column: {label_column!r} of {error}; choose another column"
                    ) from error
                problem = str(error)
            if problem:
                notes.append(f"label column {self.label_column!r}: {problem}: taken as unlabelled")
        self._labelled = labels is not None
        self.note = "; ".join(notes)

        num_samples = int(self._starts[-1])
        # Neighbours, so that few row groups are read.
        some = np.arange(min(16, num_samples))
        self._require_bytes(some, types)
        size = median_size(self.read, self.path, some)
        content = digest(self.files, groups.tobytes(), self.image_column, self.label_column)
        names = self.class_names if labels is not None else None
        self.info = DatasetInfo(name, num_samples, size, class_count(labels, names), content, names)

    def _file(self, i: int) -> Location:
        return self.root / self.files[i] if self.files[i] else self.root

    def _name(self, i: int) -> str:
        return self.files[i] or self.root.name

    def _row_groups(self, i: int) -> list[tuple[int, int, int, int]]:
        metadata = open_parquet(self._file(i)).metadata
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        return [(i, k, group.num_rows, group.total_byte_size) for k, group in enumerate(groups)]

    def _find_images(self, types: dict[int, Types], wanted: str | None, said: Iterable[str]) -> str:
        """The image column of all files. Raises UserError for one that has none, or what is no image there."""
        seen: dict[str, Any] = {}
        for names in types.values():
            for name, kind in names.items():
                if name not in seen or (not holds_images(seen[name]) and holds_images(kind)):
                    seen[name] = kind
        column = find_image_column(seen, wanted, self.root, said)
        good = next(i for i in types if column in types[i] and holds_images(types[i][column]))
        for i, names in types.items():
            if column not in names:
                raise UserError(
                    f"data: {str(self._file(i))!r} has no column {column!r}, which holds the images of "
                    f"{self._name(good)!r}; {columns_of(names)}"
                )
            if not holds_images(names[column]) and not pa.types.is_null(names[column]):
                raise UserError(
                    f"data: column {column!r} holds images in {self._name(good)!r} ({types[good][column]}) and none "
                    f"in {self._name(i)!r} ({names[column]}); take one of the files away, or name another column "
                    "with image_column"
                )
        return column

    def _require_everywhere(self, column: str, types: dict[int, Types]) -> None:
        """Raises UserError for a file without the column of labels that the user named."""
        for i, names in types.items():
            if column not in names and column not in self._folders(i):
                raise UserError(
                    f"label_column: {str(self._file(i))!r} has no column {column!r}, others have; {columns_of(names)}"
                )

    def _label_types(self, types: dict[int, Types]) -> dict[str, Any]:
        """The columns that could hold labels, those that folders say among them: one that is in any file counts."""
        seen: dict[str, Any] = {}
        for i, names in types.items():
            for name, kind in {**dict.fromkeys(self._folders(i), pa.string()), **names}.items():
                if name != self._column and (name not in seen or no_class(seen[name])):
                    seen[name] = kind
        return seen

    def _folders(self, i: int) -> dict[str, str | None]:
        """What the folders of a file say: `label=a%20cat/part.parquet` has the label `a cat`."""
        pairs = [part.partition("=") for part in self.files[i].split("/")[:-1]]
        return {
            unquote(key): None if value == _HIVE_MISSING else unquote(value)
            for key, mark, value in pairs
            if key and mark
        }

    def read(self, indices: Int64) -> list[bytes]:
        """As Source.read. Each row group is read once, whatever the order of the indices."""
        indices = np.asarray(indices, np.int64)
        group_of = np.searchsorted(self._starts, indices, side="right") - 1
        blobs: list[bytes] = [b""] * len(indices)
        for group in np.unique(group_of):
            rows = np.flatnonzero(group_of == group)
            file, row_group = self._groups[group].tolist()
            images = row_groups.ROW_GROUPS.get(self._file(file), row_group, self._column)
            places = (indices[rows] - self._starts[group]).tolist()
            for row, place in zip(rows.tolist(), places, strict=True):
                blobs[row] = encoded(images[place])
        return blobs

    def _require_bytes(self, indices: Int64, types: dict[int, Types]) -> None:
        """Raises UserError if there is nothing but the images' paths, as `datasets` writes a folder it has not read."""
        if any(self.read(indices)):
            return
        file, row_group = self._groups[0].tolist()
        kind = stored(types[file][self._column])
        if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
            return
        rows = open_parquet(self._file(file)).read_row_group(row_group, columns=[f"{self._column}.path"])
        paths = pc.struct_field(plain(rows.column(self._column)), "path")
        named = next((path for path in paths.to_pylist() if path), None)
        if named:
            raise UserError(
                f"data: {str(self._file(file))!r} holds paths of images ({named!r}, ...) and not their bytes, as "
                f"Dataset.to_parquet writes images that are files; give the folder of the images instead, or write "
                f"`ds` with them: {EMBED}"
            )

    def _unlabelled(self, labels: Int64) -> str | None:
        """Why the labels of some images cannot be used, so that those of the others are not; None if they can."""
        without = np.flatnonzero(labels < 0)
        if not len(without):
            return None
        group = np.searchsorted(self._starts, without[0], side="right") - 1
        return (
            f"{len(without):,} of {len(labels):,} are missing, negative or huge, the first in "
            f"{self._name(int(self._groups[group, 0]))}"
        )

    def _read_labels(self, class_names: ClassNames) -> tuple[Int64, ClassNames, str | None]:
        """(N,) classes, -1 for none, their names, and by what they are told apart.

        Raises NoClasses for values that are no class, UserError for files that differ in what they mean.
        """
        assert self.label_column is not None
        column = self.label_column
        own, folders = {}, {}
        for i in self._used:
            file = open_parquet(self._file(i))
            kinds = types_of(file.schema_arrow)
            if column in kinds:
                if reason := no_class(kinds[column]):
                    raise UserError(
                        f"data: label column {column!r} has type {kinds[column]} in {self._name(i)!r}, {reason}, "
                        f"unlike in {self._with_classes(column)}; {ADVICE}"
                    )
                values = file.read(columns=[column]).column(column)
                own[i] = Labels.of(values, self._name(i), class_names_of(file.schema_arrow, column))
            elif column in (said := self._folders(i)):
                folders[i] = Labels.same(said[column], file.metadata.num_rows, self._name(i))
            else:
                missing = pa.chunked_array([pa.nulls(file.metadata.num_rows, pa.int64())])
                own[i] = Labels(f"{self._name(i)} (no such column)", None, missing)
        own.update(zip(folders, folder_labels(list(folders.values())), strict=True))
        parts, names = unified([own[i] for i in self._used], column, class_names)
        return numbered(parts, names), names, next((part.by for part in parts if part.by), None)

    def _with_classes(self, column: str) -> str:
        """The first file whose column can hold classes, and its type."""
        kinds = ((i, types_of(open_parquet(self._file(i)).schema_arrow).get(column)) for i in self._used)
        return next(f"{self._name(i)!r} ({kind})" for i, kind in kinds if kind and not no_class(kind))

    def labels(self) -> Int64 | None:
        """As Source.labels. Text labels are numbered in the order of `class_names`."""
        return self._read_labels(self.class_names)[0] if self._labelled else None

    def path(self, index: int) -> str:
        """As Source.path: file and row of the whole set."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._file(int(self._groups[group, 0]))} row {index}"
