"""The splits of Parquet and Arrow files: their files, classes and labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psvit_ray.data.images import file_bytes
from psvit_ray.data.images.decode import BadImage
from psvit_ray.data.sources import arrow_file, columns
from psvit_ray.data.sources.columns import Columns
from psvit_ray.data.sources.image_source import Source, class_name
from psvit_ray.data.sources.parquet_table import (
    CACHE_BYTES,
    ParquetTable,
    is_arrow,
    is_table,
    open_file,
    open_parquet,
)
from psvit_ray.data.sources.shard_manifest import SHARD_MANIFEST, ShardFile, read_manifest
from psvit_ray.data.splits.layout import AS_NAMED, DataLayout, Split
from psvit_ray.data.splits.splits import (
    SPLIT_OF,
    WORDS,
    described_places,
    look_alikes,
    splits_advice,
    splits_in,
)
from psvit_ray.storage import files
from psvit_ray.storage.files import Listing, printable_path
from psvit_ray.storage.folder import Folder
from psvit_ray.text.messages import nearest, quoted_list

READ_THREADS = 16
"""Files read at the same time, as in an object store nearly all the time is waiting."""
MISSING = np.iinfo(np.int64).min
"""Stands for a label that is null."""
STATE = "state.json"
"""Name of the file in which `save_to_disk` lists the Arrow files of the data, beside which there
may be those of its cache."""


@dataclass(frozen=True, eq=False)
class FileContent:
    """The content of a file but its images."""

    path: str
    """Path of the file."""
    labels: np.ndarray
    """Numbers of the classes, or the labels themselves if classes have no names, (N,) int64."""
    group_rows: tuple[int, ...]
    """Rows of each row group."""
    group_numbers: tuple[int, ...]
    """Identifiers of the row groups, by which `ParquetTable` reads them."""
    group_contents: tuple[str, ...]
    """What is known of each row group's images without reading them: the stored bytes of its
    columns."""
    largest_group: int
    """Size of the largest row group, in bytes."""
    column: str
    """Column of images."""
    class_names: tuple[str, ...] | None
    """Names of the classes; None if the labels are numbers without names."""
    in_words: bool
    """Whether the labels are words, whose distinct values are then the classes."""


def read_tables(
    name: str, root: Folder, paths: Sequence[str], layout: DataLayout, notes: Sequence[str] = ()
) -> Source:
    """The splits of these files below `root`. `name` is the data's name in messages, `notes` are
    those to begin with. Raises ValueError for data that cannot be used, and OSError."""
    by_split = (
        _given_splits(root, paths, layout) if layout.splits else _recognised_splits(root, paths)
    )
    if layout.splits or list(by_split) != ["train"]:
        notes = [
            *notes,
            *described_places({s: [*map(printable_path, by_split[s])] for s in by_split}),
        ]
        if unused := sorted(
            set(paths) - {path for several in by_split.values() for path in several}
        ):
            notes.append(
                f"{len(unused):,} files are in no split, such as {printable_path(unused[0])}"
            )
    return _splits(name, root, by_split, layout, None, notes)


def read_table_folder(name: str, root: Folder, listing: Listing, layout: DataLayout) -> Source:
    """The splits of all files in a folder, by its manifest if it has one, else as `read_tables`."""
    paths = _of_datasets(root, listing)
    manifest = read_manifest(root)
    if manifest is None:
        if not layout.splits:
            return read_tables(name, root, paths, layout, listing.notes)
        links = {link: kept for link, kept in listing.links.items() if is_table(link)}
        by_split = _given_splits(root, [*paths, *links], layout)
        used = {path for several in by_split.values() for path in several}
        once = [path for path in [*paths, *links] if links.get(path) not in used]
        return read_tables(name, root, once, layout)
    layout.check_unused(name)
    shards = {
        path: file for split in manifest.splits.values() for path, file in split.files.items()
    }
    if differ := set(paths) ^ set(shards):
        raise _differs(root, differ)
    by_split = {
        split: [*manifest.splits[split].files] for split in WORDS if split in manifest.splits
    }
    return _splits(name, root, by_split, layout, manifest.class_names, listing.notes, shards)


def images(root: Folder, paths: Sequence[str], layout: DataLayout = AS_NAMED) -> ParquetTable:
    """A table of the images in these files, in their order, all with the label -1: a column of
    labels is not needed.

    Raises ValueError for data that cannot be used, and OSError.
    """
    chosen = _chosen_columns(root, paths[0], layout, labelled=False)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return _make_table(
            root, [*pool.map(lambda path: _read_content(root, path, chosen), paths)], {}
        )


def _differs(root: Folder, paths: set[str]) -> ValueError:
    return ValueError(
        f"data must match {SHARD_MANIFEST} in {root}, got other files or rows: "
        f"{quoted_list(sorted(paths))}; psvit prepare --verify says more"
    )


def _of_datasets(root: Folder, listing: Listing) -> list[str]:
    """The Parquet and Arrow files of a folder; where `save_to_disk` wrote, only those that it
    lists. Raises ValueError if one of these is missing."""
    tables = [path for path in listing.files if is_table(path)]
    for state in (path for path in listing.files if PurePosixPath(path).name == STATE):
        above = PurePosixPath(state).parent
        try:
            content = json.loads(file_bytes.read_image_file(root, state))
            own = {str(above / file["filename"]) for file in content["_data_files"]}
        except (BadImage, KeyError, TypeError, ValueError, RecursionError):
            continue  # a file of something else
        beside = [path for path in tables if PurePosixPath(path).parent == above]
        if missing := own - set(beside):
            raise ValueError(
                f"data must have the files that {state} names, got none for {quoted_list(missing)} "
                "in "
                f"{root}"
            )
        tables = [path for path in tables if path not in beside or path in own]
    return tables


def _given_splits(root: Folder, paths: Sequence[str], layout: DataLayout) -> dict[Split, list[str]]:
    """Files of each split in a user's layout, whose patterns match paths, with or without the
    suffix, or folders. Raises ValueError for a pattern that matches no file, and for a file in two
    splits."""
    names = {
        path: [".", path, str(PurePosixPath(path).with_suffix("")), *map(str, _folders(path))]
        for path in sorted(paths)
    }
    split_of: dict[str, Split] = {}
    for split, pattern in layout.patterns:
        fits = [path for path in names if any(files.matches(n, pattern) for n in names[path])]
        if not fits:
            known = sorted({name for path in names for name in names[path][1:]})
            near = nearest(pattern, known)
            hint = f"; nearest is {printable_path(near)!r}" if near else ""
            raise ValueError(f"splits must name files of the data, got {pattern!r} in {root}{hint}")
        for path in fits:
            if split_of.setdefault(path, split) != split:
                raise ValueError(
                    f"splits must name each file once, got {printable_path(path)} as "
                    f"{split_of[path]} and "
                    f"{split}"
                )
    return _in_order(split_of)


def _folders(path: str) -> list[PurePosixPath]:
    return [*PurePosixPath(path).parents][:-1]


def _recognised_splits(root: Folder, paths: Sequence[str]) -> dict[Split, list[str]]:
    """Files of each split by the words for splits in their names and those of their folders:
    train-00000-of-00008, data/test/0000. If there are none, all files are train.

    Raises ValueError if only some files name a split, or if one names two.
    """
    splits = {path: set().union(*map(splits_in, PurePosixPath(path).parts)) for path in paths}
    clear: dict[Split, str] = {}
    for path in sorted(paths):
        if len(splits[path]) == 1:
            clear.setdefault(next(iter(splits[path])), path)
    say = splits_advice(clear)
    if len(paths) > 1 and (double := [path for path in splits if len(splits[path]) > 1]):
        raise ValueError(
            f"data must name one split for each file, got {printable_path(double[0])} in {root}; "
            f"{say}"
        )
    nameless = [path for path in sorted(paths) if not splits[path]]
    if clear and nameless:
        raise ValueError(
            "data must name the split of every file or of none, got "
            f"{printable_path(min(clear.values()))} "
            f"beside {printable_path(nameless[0])} in {root}; {say}"
        )
    if not clear:
        alike = look_alikes(part for path in sorted(paths) for part in PurePosixPath(path).parts)
        if alike:
            raise ValueError(
                f"data must have files whose names say whether they are splits, got "
                f"{quoted_list(sorted(alike.values()))} in {root}; {splits_advice(alike)}"
            )
        return {"train": sorted(paths)}
    words: dict[Split, dict[str, str]] = {}
    for path, (split,) in sorted(splits.items()):
        words.setdefault(split, {}).setdefault(_word(path), path)
    for split, by_word in words.items():
        if len(by_word) > 1 and split != "train":
            raise ValueError(
                "data must name each split in one way, got "
                f"{quoted_list(sorted(by_word.values()))} for "
                f"{split} in {root}; {say}"
            )
    return _in_order({path: split for path, (split,) in splits.items()})


def _word(path: str) -> str:
    """The word for a split in a path that has one."""
    parts = "/".join(PurePosixPath(path).parts).lower()
    return next(word for word in SPLIT_OF if word in parts)


def _in_order(split_of: Mapping[str, Split]) -> dict[Split, list[str]]:
    given = set(split_of.values())
    return {
        split: [path for path in sorted(split_of) if split_of[path] == split]
        for split in WORDS
        if split in given
    }


def _chosen_columns(
    root: Folder, path: str, layout: DataLayout, *, labelled: bool = True
) -> Columns:
    where = f"{printable_path(path)} in {root}"
    return columns.find_columns(_read_schema(root, path), layout, where, labelled=labelled)


def _read_schema(root: Folder, path: str) -> pa.Schema:
    try:
        if is_arrow(path):
            with open_file(root, path) as source:
                schema = arrow_file.schema_of(source)
        else:
            schema = open_parquet(root, path).schema_arrow
        len(schema.names)  # broken names raise only here
    except (pa.ArrowException, OSError, UnicodeError, BadImage) as error:
        raise _unreadable(root, path, error) from None
    return schema


def _unreadable(root: Folder, path: str, error: Exception) -> ValueError:
    kind = "an Arrow stream" if is_arrow(path) else "Parquet"
    return ValueError(
        f"data must be {kind} that can be read, got {printable_path(path)} in {root}: "
        f"{files.error_text(error)}"
    )


def _read_content(root: Folder, path: str, chosen: Columns) -> FileContent:
    where = f"{printable_path(path)} in {root}"
    try:
        schema, values, rows, numbers, known, largest = (
            _arrow_parts if is_arrow(path) else _parquet_parts
        )(root, path, chosen.label)
        columns.check_image(schema, chosen.image, where)
        names = columns.class_names(schema, chosen.label)
        labels, words = _label_numbers(values, where)
    except (pa.ArrowException, OSError, UnicodeError, BadImage) as error:
        raise _unreadable(root, path, error) from None
    in_words = words is not None
    return FileContent(
        path, labels, rows, numbers, known, largest, chosen.image, words or names, in_words
    )


Parts = tuple[pa.Schema, pa.ChunkedArray, tuple[int, ...], tuple[int, ...], tuple[str, ...], int]
"""Parts of a file's content: schema, labels, and of its row groups the rows, the identifiers, what
is known of the content, and the bytes of the largest."""


def _parquet_parts(root: Folder, path: str, label: str) -> Parts:
    parquet = open_parquet(root, path)
    groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
    rows = tuple(group.num_rows for group in groups)
    values = pa.chunked_array([pa.nulls(sum(rows))])
    if label in parquet.schema_arrow.names:
        values = parquet.read(columns=[label], use_threads=False).column(0)
    largest = max((group.total_byte_size for group in groups), default=0)
    known = tuple(map(_column_bytes, groups))
    return parquet.schema_arrow, values, rows, tuple(range(len(rows))), known, largest


def _column_bytes(group: pq.RowGroupMetaData) -> str:
    sizes = (group.column(number).total_compressed_size for number in range(group.num_columns))
    return ",".join(map(str, sizes))


def _arrow_parts(root: Folder, path: str, label: str) -> Parts:
    rows, numbers, labels, known, largest = [], [], [], [], 0
    with open_file(root, path) as source:
        schema = arrow_file.schema_of(source)
    with open_file(root, path, mapped=True) as source:  # mapped, as images are not read here
        for start, batch in arrow_file.batches(source):
            numbers.append(start)
            rows.append(batch.num_rows)
            largest = max(largest, batch.nbytes)
            known.append(",".join(str(column.nbytes) for column in batch.columns))
            has = label in schema.names
            labels.append(batch.column(label) if has else pa.nulls(batch.num_rows))
    kind = schema.field(label).type if label in schema.names else pa.null()
    values = pa.chunked_array(labels, kind)
    return schema, values, tuple(rows), tuple(numbers), tuple(known), largest


def _label_numbers(
    values: pa.ChunkedArray, where: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as integers, and None; or for words their numbers, and the distinct words."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
        kind = kind.value_type
    if not columns.is_label(kind):
        raise ValueError(
            f"data must have integers, strings or bool as label, got {kind} in {where}"
        )
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return values.cast(pa.int64()).fill_null(MISSING).to_numpy(), None
    if pa.types.is_boolean(kind):
        values = values.cast(pa.string())
    encoded = values.cast(pa.large_string()).combine_chunks().dictionary_encode()
    labels = encoded.indices.cast(pa.int64()).fill_null(MISSING).to_numpy(zero_copy_only=False)
    return labels, tuple(encoded.dictionary.to_pylist())


def _splits(
    name: str,
    root: Folder,
    by_split: Mapping[Split, list[str]],
    layout: DataLayout,
    class_names: tuple[str, ...] | None,
    notes: Sequence[str],
    shards: Mapping[str, ShardFile] = MappingProxyType({}),
) -> Source:
    """The splits of files; `shards` are the entries of a manifest, by path."""
    chosen = _chosen_columns(root, next(iter(by_split.values()))[0], layout)
    notes = [*notes, *chosen.notes]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        reading = {
            split: [pool.submit(_read_content, root, path, chosen) for path in paths]
            for split, paths in by_split.items()
        }
        contents = {split: [task.result() for task in tasks] for split, tasks in reading.items()}
    every = [content for several in contents.values() for content in several]
    if shards and (differ := {c.path for c in every if len(c.labels) != shards[c.path].rows}):
        raise _differs(root, differ)
    if len(contents) > 1 and "test" in contents and _unlabelled(contents["test"]):
        number = sum(len(content.labels) for content in contents.pop("test"))
        notes.append(f"the {number:,} images of test have no labels and are not used")
    for several in contents.values():
        for content in several:
            _check_present(content, root)
    names = _with_names(contents, class_names, root)
    largest = max(content.largest_group for several in contents.values() for content in several)
    if largest > CACHE_BYTES // 2:
        notes.append(
            f"row groups of up to {largest / 1e6:,.0f} MB are read as a whole: "
            "psvit prepare writes smaller ones"
        )
    tables = {split: _make_table(root, several, shards) for split, several in contents.items()}
    return Source.of(name, names, tables, notes)


def _unlabelled(contents: list[FileContent]) -> bool:
    """Whether no label is valid: test splits of the hub have -1 for each, or none."""
    return all((content.labels < 0).all() for content in contents)


def _with_names(
    contents: dict[Split, list[FileContent]], class_names: tuple[str, ...] | None, root: Folder
) -> dict[Split, tuple[str, ...]]:
    """Class names of each split: those that are given or that the files name, else the distinct
    labels, sorted. The labels in `contents` are replaced by their numbers. Raises ValueError."""
    every = [content for several in contents.values() for content in several]
    if len({content.in_words for content in every if len(content.labels)}) > 1:
        odd = next(content for content in every if content.in_words != every[0].in_words)
        raise ValueError(
            f"data must have labels of one kind in every file, got numbers and words, such as in "
            f"{printable_path(odd.path)} in {root}"
        )
    declared = class_names or next(
        (content.class_names for content in every if content.class_names is not None), None
    )
    names: dict[Split, tuple[str, ...]] = {}
    for split, several in contents.items():
        if any(content.in_words for content in several):
            names[split] = tuple(sorted({w for c in several for w in map(class_name, _words(c))}))
            contents[split] = [_numbered(content, names[split]) for content in several]
        elif declared is not None:
            own = [c.class_names for c in several if c.class_names is not None]
            names[split] = class_names or (own or [declared])[0]
            for content in several:
                if class_names is None and content.class_names not in (None, names[split]):
                    raise ValueError(
                        f"data must have the same classes in every file of {split}, got others in "
                        f"{printable_path(content.path)}"
                    )
                _check_range(content, len(names[split]), root)
        else:
            for content in several:
                _check_range(content, None, root)
            numbers = np.unique(np.concatenate([content.labels for content in several]))
            names[split] = tuple(map(str, numbers))
            contents[split] = [
                replace(content, labels=np.searchsorted(numbers, content.labels))
                for content in several
            ]
    return names


def _words(content: FileContent) -> tuple[str, ...]:
    return content.class_names or ()


def _numbered(content: FileContent, names: tuple[str, ...]) -> FileContent:
    """The content with labels that are numbers of the classes `names`."""
    number = {name: number for number, name in enumerate(names)}
    numbers = np.array([number[class_name(word)] for word in _words(content)], dtype=np.int64)
    return replace(content, labels=numbers[content.labels])


def _check_present(content: FileContent, root: Folder) -> None:
    if (content.labels == MISSING).all() and len(content.labels):
        raise ValueError(
            f"data must have labels, got none in {printable_path(content.path)} in {root}; "
            "psvit predict takes images without labels"
        )
    if (content.labels == MISSING).any():
        row = int((content.labels == MISSING).argmax())
        raise ValueError(
            f"data must have a label for every image, got none in row {row} of "
            f"{printable_path(content.path)} in {root}"
        )


def _check_range(content: FileContent, num_classes: int | None, root: Folder) -> None:
    outside = content.labels < 0
    if num_classes is not None:
        outside |= content.labels >= num_classes
    if outside.any():
        row = int(outside.argmax())
        rule = "from 0 on" if num_classes is None else f"0 to {num_classes - 1}"
        why = "" if num_classes is None else f", as it has {num_classes} classes"
        raise ValueError(
            f"data must have labels {rule}{why}, got {content.labels[row]} in row {row} of "
            f"{printable_path(content.path)} in {root}"
        )


def _make_table(
    root: Folder, contents: list[FileContent], shards: Mapping[str, ShardFile]
) -> ParquetTable:
    groups: list[tuple[int, int, int]] = []
    rows, blocks, known = [], [], []
    for number, content in enumerate(contents):
        first = np.cumsum([0, *content.group_rows])
        for group, count in enumerate(content.group_rows):
            blocks.append(np.full(count, len(groups), dtype=np.int64))
            groups.append((number, content.group_numbers[group], first[group]))
            shard = [shards[content.path].sha256] if shards else []
            known.append(" ".join([content.group_contents[group], *shard]))
        rows.append(np.arange(len(content.labels), dtype=np.int64))
    return ParquetTable(
        root,
        tuple(content.path for content in contents),
        np.array(groups, dtype=np.int64).reshape(-1, 3),
        contents[0].column,
        np.concatenate(rows),
        np.concatenate(blocks or [np.empty(0, dtype=np.int64)]),
        np.concatenate([content.labels for content in contents]),
        tuple(known),
    )
