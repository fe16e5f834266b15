"""The schema of Arrow files, Arrow streams and Parquet files, believed in nothing. Maps, and copies no column.

Beyond the schema it looks whether the file is whole: every message of an Arrow file must lie in it, and a Parquet file
must end with its footer. What is in the columns is not read.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

_FOOTER_LIMIT_BYTES = 16 << 20
_ARROW, _PARQUET = b"ARROW1", b"PAR1"


class NotArrow(ValueError):
    """Not a whole file of this kind; the message goes after 'it'."""


def read_schema(data: memoryview) -> list[tuple[str, str]]:
    """(name, type) of each column of an Arrow file or stream, or of a Parquet file, that is whole.

    Raises:
        NotArrow.
    """
    try:
        if bytes(data[:4]) == _PARQUET:
            schema = _parquet(data)
        elif bytes(data[:6]) == _ARROW:
            schema = _file(data)
        else:
            schema, _ = _stream(data)
        return [(field.name, str(field.type)) for field in schema]
    except NotArrow:
        raise
    # A length that lies can ask for more memory than there is: that is the file's fault too.
    except (pa.ArrowException, OSError, EOFError, ValueError, MemoryError) as error:
        raise NotArrow(f"is not whole or not of this kind: {' '.join(str(error).split())[:200]}") from None


def _stream(data: memoryview) -> tuple[Any, int]:
    """The schema, and how many record batches lie in the stream."""
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(data))
    schema: Any = None
    batch_count = 0
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            break
        if schema is None:
            if message.type != "schema":
                raise NotArrow(f"begins with a {message.type} and not with a schema")
            schema = pa.ipc.read_schema(message)
        batch_count += message.type == "record batch"
    if schema is None:
        raise NotArrow(f"has {len(data):,} bytes and no schema")
    return schema, batch_count


def _file(data: memoryview) -> Any:
    reader = pa.ipc.open_file(pa.py_buffer(data))
    # Its messages are a stream from byte 8 on; the footer points into it.
    schema, batch_count = _stream(data[8:])
    if batch_count != reader.num_record_batches or not schema.equals(reader.schema):
        raise NotArrow(
            f"has {batch_count:,} record batches, and its footer tells of {reader.num_record_batches:,} or of "
            "another schema"
        )
    return schema


def _parquet(data: memoryview) -> Any:
    if len(data) < 12 or bytes(data[-4:]) != _PARQUET:
        raise NotArrow("is a Parquet file that is cut: it does not end as one")
    footer_bytes = int.from_bytes(data[-8:-4], "little")
    if footer_bytes > min(len(data) - 12, _FOOTER_LIMIT_BYTES):
        raise NotArrow(f"says its footer has {footer_bytes:,} bytes, and it has {len(data):,} in all")
    # Not where its column chunks are: pyarrow ends the process when it is asked for those of a damaged footer.
    return pa.parquet.ParquetFile(pa.BufferReader(pa.py_buffer(data))).schema_arrow
