"""Class labels as columns of several files hold them: by number or by name, in whatever Arrow type, made into one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_ray.data.plan import Int64
from ssl_ray.data.sources.base import Source, counted
from ssl_ray.data.sources.columns import stored
from ssl_ray.errors import UserError

# Larger numbers are identifiers, not classes.
MAX_CLASSES = 1_000_000
# What labels say of a class. True and false are no numbers: beside numbers, nobody knows which classes they are.
NUMBERS, NAMES, TRUTH = "numbers", "names", "true and false"
ADVICE = 'write them alike, choose another column with label_column, or none with label_column ""'

ClassNames = tuple[str, ...] | None


class NoClasses(Exception):
    """Values that stand for no class; the message says which."""


@dataclass(frozen=True)
class Labels:
    """Labels of one file. where: what an error calls it, with the type. by: NUMBERS, NAMES, TRUTH; None: all missing.

    values: chunked array, int64 or large_string. names: of the classes that are numbered, where the file has them.
    """

    where: str
    by: str | None
    values: Any
    names: ClassNames = None

    @classmethod
    def of(cls, column: Any, file: str, names: ClassNames = None) -> "Labels":
        """Reads a column, a chunked array of a type that `no_class` lets pass. Raises NoClasses."""
        where = f"{file} ({column.type})"
        column = plain(column)
        kind = column.type
        if column.null_count == len(column):
            return cls(where, None, column)
        if pa.types.is_boolean(kind):
            return cls(where, TRUTH, column.cast(pa.int64()))
        try:
            if pa.types.is_integer(kind):
                numbers = _numbers(column)
            elif pa.types.is_floating(kind):
                numbers = _whole(column)
            elif pa.types.is_decimal(kind):
                # pyarrow (25, 26) casts none of the narrowest to 64 bits: "Integer value out of bounds".
                numbers = column.cast(pa.decimal128(38, kind.scale)).cast(pa.int64())
            else:
                return cls(where, NAMES, column.cast(pa.large_string()))
        except pa.ArrowInvalid as error:
            raise NoClasses(f"{where} holds values that are no class: {error}") from error
        return cls(where, NUMBERS if numbers.null_count < len(numbers) else None, numbers, names)

    @classmethod
    def same(cls, value: str | None, count: int, file: str) -> "Labels":
        """One label for all rows of a file, as the folder it is in says it; None: missing."""
        values = pa.chunked_array([pa.repeat(pa.scalar(value, pa.large_string()), count)])
        return cls(f"{file} (the folder's name)", NAMES if value is not None else None, values)

    def as_names(self) -> "Labels":
        """The same by name; only where the classes have names. Raises UserError for a number without one."""
        if self.by == NAMES or self.names is None:
            return self
        numbers = self.values
        if (bad := pc.max(numbers).as_py()) is not None and bad >= len(self.names):
            raise UserError(
                f"data: label {bad} of {self.where} has no name; its {len(self.names)} classes have one"
            )
        # -1 is how the Hugging Face library says that there is none.
        present = pc.if_else(pc.less(numbers, 0), None, numbers)
        names = pa.array(self.names, pa.large_string())
        chunks = [names.take(chunk) for chunk in present.chunks]
        return Labels(self.where, NAMES, pa.chunked_array(chunks, pa.large_string()))


def plain(column: Any) -> Any:
    """A chunked array without extension and dictionary."""
    while column.type != stored(column.type):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        else:
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column


def folder_labels(parts: Sequence[Labels]) -> list[Labels]:
    """Labels that folders say: numbers if all are, as they would be written (`7`, not `07`), else names."""
    values = [part.values[0].as_py() for part in parts if part.by]
    if not all(value.isdecimal() and str(int(value)) == value for value in values):
        return list(parts)
    return [Labels(p.where, NUMBERS if p.by else None, p.values.cast(pa.int64())) for p in parts]


def unified(parts: Sequence[Labels], column: str, class_names: ClassNames) -> tuple[list[Labels], ClassNames]:
    """The labels of several files as one kind, and the names of their classes.

    class_names: of the training part, for its held-out part. Numbers stay numbers where all files mean the same by
    them; else their names are compared. Raises UserError for files whose labels cannot be compared.
    """
    said = [part for part in parts if part.by]
    known = [names for names in (class_names, *(part.names for part in said)) if names]
    by = {part.by for part in said}
    if len(by) <= 1 and NAMES not in by and len(set(known)) <= 1:
        return list(parts), known[0] if known else None
    for first, other in pairwise(said):
        if not _comparable(first, other):
            raise UserError(
                f"data: labels of column {column!r} are {first.by} in {first.where} and {other.by} in {other.where}: "
                f"whether they are the same classes is not known; {ADVICE}"
            )
    named = [part.as_names() if part.by else part for part in parts]
    if class_names is None:
        found = {name for part in named if part.by for name in pc.unique(part.values).to_pylist()}
        class_names = tuple(sorted(found - {None}))
    return named, class_names


def _comparable(first: Labels, other: Labels) -> bool:
    return all(part.by == NAMES or part.names for part in (first, other)) or (
        first.by == other.by and first.names == other.names
    )


def numbered(parts: Sequence[Labels], class_names: ClassNames) -> Int64:
    """(N,) class of every image, -1 where there is none or the number is no class's.

    Raises UserError for a name that is not in `class_names`.
    """
    names = pa.array(class_names or (), pa.large_string())
    numbers = []
    for part in parts:
        values = part.values
        if part.by == NAMES:
            unknown = set(pc.unique(values).to_pylist()) - {None} - set(class_names or ())
            if unknown:
                raise UserError(
                    f"data: label {min(unknown)!r} in {part.where} is no class of the training part"
                )
            values = pc.index_in(values, value_set=names, skip_nulls=True)
        if not part.by:
            values = pa.chunked_array([pa.nulls(len(values), pa.int64())])
        numbers.append(values.cast(pa.int64()).fill_null(-1).to_numpy())
    labels: Int64 = np.concatenate(numbers)
    labels[labels >= MAX_CLASSES] = -1
    return labels


def _numbers(column: Any) -> Any:
    """Integers as int64; those beyond it are no classes anyway."""
    if pa.types.is_uint64(column.type):
        column = pc.min_element_wise(column, pa.scalar(MAX_CLASSES, pa.uint64()), skip_nulls=False)
    return column.cast(pa.int64())


def _whole(column: Any) -> Any:
    """Floating-point numbers as int64, NaN as missing: pandas turns a column of integers into such for one gap."""
    column = column.cast(pa.float64())
    column = pc.if_else(pc.is_nan(column), None, column)
    odd = column.filter(pc.invert(pc.and_(pc.is_finite(column), pc.equal(pc.trunc(column), column))))
    if len(odd):
        raise pa.ArrowInvalid(f"the first is {odd[0].as_py()!r}")
    return pc.min_element_wise(column, pa.scalar(float(MAX_CLASSES)), skip_nulls=False).cast(pa.int64())


def require_same_classes(train: Source, val: Source, name: str) -> None:
    """Raises UserError where the labels of a held-out part, called `name`, are not known to be the training part's."""
    (by, names, count), (val_by, val_names, val_count) = map(_classes, (train, val))
    if val_by != by and not (val_by == NAMES and names):
        raise UserError(
            f"data: the training part of {train.info.name!r} has labels by {by}, {name} by {val_by}: whether they are "
            "the same classes is not known; write them alike"
        )
    if names and val_names and names != val_names:
        others = [each for each in val_names if each not in names] or val_names
        raise UserError(
            f"data: the classes of {name} differ from those of training in name or order: "
            f"{counted('classes', others)}, not {counted('classes', names)}"
        )
    if val_count > count:
        raise UserError(
            f"data: label {val_count - 1} in {name} is no class of the training part, whose largest is {count - 1}"
        )


def _classes(source: Source) -> tuple[str, ClassNames, int]:
    """What labels are by, the names of the classes where they have any, and how many there are."""
    names = source.info.class_names
    by = getattr(source, "labels_by", None) or (NAMES if names else NUMBERS)
    return by, names, source.info.num_classes or 0
