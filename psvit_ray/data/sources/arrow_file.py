"""Arrow files, as `save_to_disk` and the cache of the `datasets` library write them: a stream of
record batches, of which each is a block that is read by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa


def batches(source: pa.NativeFile) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The byte at which each batch starts, and the batch. Raises pyarrow.ArrowInvalid, OSError."""
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
    """Raises pyarrow.ArrowInvalid where it is no such file, OSError."""
    return pa.ipc.open_stream(source).schema


def read_batch(source: pa.NativeFile, start: int, column: str) -> pa.ChunkedArray:
    """A column of the batch that starts at a byte; NAME.FIELD is a field of a struct."""
    schema = schema_of(source)
    source.seek(start)
    batch = _sound(pa.ipc.read_record_batch(pa.ipc.read_message(source), schema))
    name, _, field = (column, "", "") if column in schema.names else column.rpartition(".")
    values = batch.column(name)
    if field:
        values = values.flatten()[values.type.get_field_index(field)]
    return pa.chunked_array([values])


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch without lengths or offsets that lead anywhere in memory, of which pyarrow would end
    the process. Raises pyarrow.ArrowInvalid."""
    if batch.num_rows < 0 or any(len(column) != batch.num_rows for column in batch.columns):
        raise pa.ArrowInvalid(f"broken batch of {batch.num_rows:,} rows")
    batch.validate(full=True)
    return batch


def _check(schema: pa.Schema) -> None:
    for field in schema:
        if pa.types.is_dictionary(field.type):  # whose values stand in another message
            raise pa.ArrowInvalid(f"column {field.name} is a dictionary, which is not supported")
