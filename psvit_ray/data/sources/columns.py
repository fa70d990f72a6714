"""The columns of images and labels in a table: by a user's layout, by the features that the
`datasets` library notes in the schema, or by their types."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from psvit_ray.data.sources.image_source import class_name
from psvit_ray.data.splits.layout import DataLayout
from psvit_ray.text.messages import nearest, quoted_list

IS_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
IS_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
BYTES_FIELD = ".bytes"
"""Suffix of the name of a struct column, for its field with the bytes of images."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read."""

    image: str
    """Column of images; NAME.bytes if it is a struct."""
    label: str
    """Column of labels; empty if there is none."""
    notes: tuple[str, ...] = ()
    """Notes for the user, one line each."""


def find_columns(
    schema: pa.Schema, layout: DataLayout, where: str, *, labelled: bool = True
) -> Columns:
    """The columns in a user's `layout`; else `image` and `label`; else those that the `datasets`
    library notes as image and classes; else the only ones of a type that fits. `where` names the
    file in messages.

    Raises ValueError if there is no column of images, or if several are possible.
    """
    types = dict(zip(schema.names, schema.types, strict=True))
    features = _features(schema)
    images = [name for name, kind in types.items() if _image_column(name, kind)]
    noted = [name for name in images if features.get(name, {}).get("_type") == "Image"]
    image = _chosen("image", layout.image_column, noted, images, types, where)
    if not image:
        raise ValueError(
            f"data must have a column of images (struct of bytes and path, or bytes), got "
            f"{_described(types)} in {where}"
        )
    column = _image_column(image, types[image])
    if not labelled:
        return Columns(column, "", _notes("images", "image", image, noted))
    labels = [name for name, kind in types.items() if name != image and is_label(kind)]
    classes = [name for name in labels if features.get(name, {}).get("_type") == "ClassLabel"]
    label = _chosen("label", layout.label_column, classes, labels, types, where)
    if not label and "label" in types:
        raise ValueError(
            f"data must have integers, strings or bool as label, got {types['label']} in {where}"
        )
    notes = _notes("images", "image", image, noted) + _notes("labels", "label", label, classes)
    return Columns(column, label, notes)


def class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Class names that the `datasets` library notes for a column of numbers, or None."""
    names = _features(schema).get(label, {}).get("names")
    return tuple(class_name(str(name)) for name in names) if isinstance(names, list) else None


def is_label(kind: pa.DataType) -> bool:
    """Whether values of a type can be labels."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    whole = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(fits(kind) for fits in (*whole, *IS_TEXT))


def check_image(schema: pa.Schema, column: str, where: str) -> None:
    """Raises ValueError if a file does not have the column of images that the others have."""
    name = column.removesuffix(BYTES_FIELD)
    if name not in schema.names or _image_column(name, schema.field(name).type) != column:
        types = dict(zip(schema.names, schema.types, strict=True))
        raise ValueError(
            f"data must have the same columns in every file, got {_described(types)} in {where}, "
            f"where images should be column {name}"
        )


def _image_column(name: str, kind: pa.DataType) -> str:
    """Name of the column, or of its field, with the bytes of images; empty if it has none."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        name, kind = f"{name}{BYTES_FIELD}", kind.field("bytes").type
    return name if any(fits(kind) for fits in IS_BYTES) else ""


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The features that the `datasets` library notes in a schema, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _chosen(
    what: str,
    given: str,
    noted: list[str],
    able: list[str],
    types: dict[str, pa.DataType],
    where: str,
) -> str:
    """Name of the column of images or labels (`what`), or empty if there is none: the `given` one,
    else the one called `what`, else the only one of `noted`, else of `able`. Raises ValueError if
    several are possible."""
    field = f"{what}_column"
    if given:
        if given in able:
            return given
        if given in types:
            raise ValueError(
                f"{field} must be a column of {what}s, got {given!r} of type {types[given]} in "
                f"{where}"
            )
        near = nearest(given, able or list(types))
        hint = f"; nearest is {near!r}" if near else ""
        raise ValueError(f"{field} must be a column of the data, got {given!r} in {where}{hint}")
    if what in able:
        return what
    several = noted or able
    if len(several) > 1:
        raise ValueError(
            f"data must have one column of {what}s, got {quoted_list(several, len(several))} in "
            f"{where}; say --{what}-column {several[0]}"
        )
    return several[0] if several else ""


def _notes(plural: str, usual: str, chosen: str, noted: list[str]) -> tuple[str, ...]:
    """A note if the column is not called `usual`, or if others are noted as well."""
    others = [name for name in noted if name != chosen]
    if not chosen or (chosen == usual and not others):
        return ()
    instead = f", not {quoted_list(others)}" if others else ""
    return (f"{plural} are column {chosen!r}{instead}",)


def _described(types: dict[str, pa.DataType]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in types.items()) or "no columns"
