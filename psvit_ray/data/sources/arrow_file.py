"""Arrow files, as the `datasets` library writes them with `save_to_disk` and to its cache: a stream
of record batches, each of which is a block that is read by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa


def batches(source: pa.NativeFile) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields the byte at which each batch starts, and the batch. Raises pyarrow.ArrowInvalid and
    OSError."""
    reader = pa.ipc.open_stream(source)
    _check(reader.schema)
    while True:
        start = source.tell()
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        yield start, _sound(batch)


def schema_of(source: pa.NativeFile) -> pa.Schema:
    """The schema of a file. Raises pyarrow.ArrowInvalid if it is not an Arrow stream, and
    OSError."""
    return pa.ipc.open_stream(source).schema


def read_batch(source: pa.NativeFile, start: int, column: str) -> pa.ChunkedArray:
    """A column of the batch that starts at byte `start`; NAME.FIELD is a field of a struct."""
    schema = schema_of(source)
    source.seek(start)
    batch = _sound(pa.ipc.read_record_batch(pa.ipc.read_message(source), schema))
    name, _, field = (column, "", "") if column in schema.names else column.rpartition(".")
    values = batch.column(name)
    if field:
        values = values.flatten()[values.type.get_field_index(field)]
    return pa.chunked_array([values])


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch`, if its lengths and offsets are valid; with others pyarrow would read beyond its
    memory and end the process. Raises pyarrow.ArrowInvalid."""
    if batch.num_rows < 0 or any(len(column) != batch.num_rows for column in batch.columns):
        raise pa.ArrowInvalid(f"broken batch of {batch.num_rows:,} rows")
    batch.validate(full=True)
    return batch


def _check(schema: pa.Schema) -> None:
    for field in schema:
        if pa.types.is_dictionary(field.type):  # its values are in another message
            raise pa.ArrowInvalid(f"column {field.name} is a dictionary, which is not supported")
