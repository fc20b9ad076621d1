"""Which columns of Parquet files hold images and labels, and what Arrow types either may have."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from ssl_ray.data.sources.base import counted
from ssl_ray.data.sources.location import Location
from ssl_ray.errors import UserError, nearest

IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "data")
LABEL_NAMES = ("label", "labels", "class", "target", "fine_label", "category", "cls", "y")
# A shorter value of fixed size is a hash or an identifier: no format has images of that few bytes.
_SHORTEST_IMAGE = 65

Types = Mapping[str, Any]
"""Column -> Arrow type."""


class LabelChoice(NamedTuple):
    """column: None without labels. notes: what else could have been meant, and what could not be used, and why."""

    column: str | None
    notes: tuple[str, ...] = ()


def types_of(schema: Any) -> dict[str, Any]:
    """The types of a schema's columns; one that appears twice is left out, for its name says nothing."""
    names = list(schema.names)
    return {field.name: field.type for field in schema if names.count(field.name) == 1}


def columns_of(types: Types) -> str:
    """What an error message says of a file: names and types."""
    return "columns: " + (", ".join(f"{name} ({kind})" for name, kind in types.items()) or "none")


def stored(kind: Any) -> Any:
    """The type of the values themselves: of an extension what it is stored as, of a dictionary what is in it."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def _is_bytes(kind: Any) -> bool:
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(is_binary)


def _is_text(kind: Any) -> bool:
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(is_string)


def _is_list(kind: Any) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def holds_images(kind: Any) -> bool:
    """Whether values of this type can be encoded images: bytes, in whatever way a writer stores them."""
    kind = stored(kind)
    if pa.types.is_struct(kind):
        i = kind.get_field_index("bytes")
        return i >= 0 and holds_images(kind.field(i).type)
    return _is_bytes(kind) or _may_hold_images(kind)


def _may_hold_images(kind: Any) -> bool:
    """Types that hold encoded images here and there, and mostly something else: taken when nothing else is there."""
    kind = stored(kind)
    if pa.types.is_fixed_size_binary(kind):
        return bool(kind.byte_width >= _SHORTEST_IMAGE)
    return _is_list(kind) and (pa.types.is_uint8(kind.value_type) or pa.types.is_int8(kind.value_type))


def find_image_column(types: Types, wanted: str | None, root: Location, declared: Iterable[str] = ()) -> str:
    """The column of encoded images: `wanted`, else the first of IMAGE_NAMES, else the only one. Raises UserError.

    declared: columns that a Hugging Face schema says are images.
    """
    candidates = [name for name, kind in types.items() if holds_images(kind)]
    if wanted is not None:
        if wanted not in candidates:
            has = f" (its type is {types[wanted]})" if wanted in types else ""
            raise UserError(
                f"image_column: {wanted!r} is no image column of {str(root)!r}{has}; {nearest(wanted, candidates)}"
            )
        return wanted
    likely = [name for name in candidates if not _may_hold_images(types[name])]
    for group in (likely, candidates):
        if named := _by_name(IMAGE_NAMES, group):
            return named[0]
        if said := [name for name in declared if name in group]:
            return said[0]
        if len(group) == 1:
            return group[0]
    text = _by_name(IMAGE_NAMES, [name for name, kind in types.items() if _is_text(stored(kind))])
    raise UserError(
        f"data: no image column in {str(root)!r}: one of type binary or struct with `bytes` is needed, "
        + (f"{text[0]!r} holds text, and paths or addresses are not followed; " if text else "")
        + f"name it with image_column; {columns_of(types)}"
    )


def no_class(kind: Any) -> str | None:
    """Why values of this type are no class labels; None if they are, or can be."""
    kind = stored(kind)
    if any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_integer,
            pa.types.is_boolean,
            pa.types.is_floating,
            pa.types.is_decimal,
            pa.types.is_null,
            _is_text,
            _is_bytes,
        )
    ):
        return None
    if _is_list(kind):
        return "which can hold several labels for one image"
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return "which holds fields, not one label"
    return "which is a time, no class" if pa.types.is_temporal(kind) else "which is no class"


def find_label_column(
    types: Types, wanted: str | None, root: Location, declared: Iterable[str] = ()
) -> LabelChoice:
    """The column of labels: `wanted` ("" for none), else the first of LABEL_NAMES whose type can be one, else none.

    types: without the image column. declared: columns that a Hugging Face schema says are classes, for want of one
    that is named so. Raises UserError.
    """
    refused = {name: reason for name, kind in types.items() if (reason := no_class(kind))}
    if wanted == "":
        return LabelChoice(None)
    if wanted is not None:
        if wanted in types and wanted not in refused:
            return LabelChoice(wanted)
        # Bytes can be text of an old writer, but nobody would look for labels there.
        usable = [name for name, kind in types.items() if name not in refused and not _is_bytes(stored(kind))]
        reason = f"has type {types[wanted]}, {refused[wanted]}" if wanted in refused else "is no label column"
        raise UserError(f"label_column: {wanted!r} in {str(root)!r} {reason}; {nearest(wanted, usable)}")
    named = _by_name(LABEL_NAMES, types)
    named += [name for name in declared if name in types and name not in named]
    notes = [
        f"label column {name!r} has type {types[name]}, {refused[name]}" for name in named if name in refused
    ]
    usable = [name for name in named if name not in refused]
    if len(usable) > 1:
        rest = ", ".join(repr(name) for name in usable[1:])
        notes.append(f"labels are column {usable[0]!r}, not {rest}; label_column chooses")
    if not named and (others := [n for n, kind in types.items() if not no_class(kind)]):
        notes.append(
            f"no column is named as labels are (label, class, ...): label_column chooses one of "
            f"{counted('columns', others)}"
        )
    return LabelChoice(usable[0] if usable else None, tuple(notes))


def _by_name(wanted: Iterable[str], names: Iterable[str]) -> list[str]:
    """Those of `names` that are in `wanted`, in its order, whatever their case."""
    names = list(names)
    return [name for want in wanted for name in names if name.lower() == want]


def features_of(schema: Any) -> dict[str, dict[str, Any]]:
    """Column -> what the Hugging Face `datasets` library stores of it in the schema's metadata, such as `_type`."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def declared(schema: Any, kind: str) -> list[str]:
    """Columns that a Hugging Face schema says are of a kind: `Image` or `ClassLabel`."""
    return [name for name, feature in features_of(schema).items() if feature.get("_type") == kind]


def class_names_of(schema: Any, column: str) -> tuple[str, ...] | None:
    """Class names that a Hugging Face schema has for a column."""
    names = features_of(schema).get(column, {}).get("names")
    return tuple(map(str, names)) if isinstance(names, list) and names else None
