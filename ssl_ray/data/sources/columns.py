"""Which columns of a Parquet file hold images and labels."""

import json
from typing import Any

import pyarrow as pa

from ssl_ray.data.sources.location import Location
from ssl_ray.errors import UserError, nearest

IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "data")
LABEL_NAMES = ("label", "labels", "class", "target", "fine_label", "category", "cls", "y")


def columns_of(schema: Any) -> str:
    """What an error message says of a schema: names and types."""
    return "columns: " + (", ".join(f"{field.name} ({field.type})" for field in schema) or "none")


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        i = kind.get_field_index("bytes")
        return i >= 0 and _holds_images(kind.field(i).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_labels(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    )


def find_image_column(schema: Any, wanted: str | None, root: Location) -> str:
    """The column of encoded images: `wanted`, else the first of IMAGE_NAMES, else the only one. Raises UserError."""
    candidates = [field.name for field in schema if _holds_images(field.type)]
    if wanted is not None:
        if wanted not in candidates:
            raise UserError(
                f"image_column: {wanted!r} is no image column of {str(root)!r}; {nearest(wanted, candidates)}"
            )
        return wanted
    named = [name for name in IMAGE_NAMES if name in candidates]
    if not named and len(candidates) != 1:
        raise UserError(
            f"data: no image column in {str(root)!r}: one of type binary or struct with `bytes` is needed, "
            f"name it with image_column; {columns_of(schema)}"
        )
    return (named or candidates)[0]


def find_label_column(schema: Any, wanted: str | None, root: Location) -> str | None:
    """The column of labels: `wanted`, else the first of LABEL_NAMES, else None. Raises UserError."""
    candidates = [field.name for field in schema if _holds_labels(field.type)]
    if wanted is not None and wanted not in candidates:
        raise UserError(
            f"label_column: {wanted!r} is no column of integers or text in {str(root)!r}; {nearest(wanted, candidates)}"
        )
    return wanted or next((name for name in LABEL_NAMES if name in candidates), None)


def class_names_of(schema: Any, column: str | None) -> tuple[str, ...] | None:
    """Class names that the Hugging Face `datasets` library stores in the schema's metadata."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None or column is None:
        return None
    feature = json.loads(stored).get("info", {}).get("features", {}).get(column, {})
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if names else None
