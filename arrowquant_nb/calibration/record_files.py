"""Files of calibration records as plain dictionaries: JSON lines, Parquet, Arrow.

Bounded in time and memory whatever the file holds: sizes are looked at before anything is unpacked. Knows the outer
form of a record, its three fields; `records` knows what must stand in them.
"""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING, Any, Final

from arrowquant_nb.arrow_files import arrow_file
from arrowquant_nb.errors import MetadataError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Record = tuple[int, dict[str, Any]]

FIELDS: Final = ("data", "timestep", "shape")
SUFFIXES: Final = (".jsonl", ".parquet", ".arrow")
MAX_RECORDS: Final = 1 << 16
# A number of JSON text, separator included; nothing that float32 can hold needs more.
NUMBER_NBYTES: Final = 40
LINE_NBYTES: Final = 1 << 16
"""Room in a line for everything but the numbers."""
BATCH_RECORDS: Final = 16
FOOTER_LIMIT_NBYTES: Final = 64 << 20
_ARROW_MAGIC: Final = b"ARROW1\0\0"


def read_records(path: Path, n_values: int) -> Iterator[Record]:
    """Yield the records of a file with their numbers from 1.

    Parameters
    ----------
    path
        `*.jsonl`, `*.parquet` or `*.arrow`.
    n_values
        Numbers that one record holds at most.

    Raises
    ------
    ModelNotFoundError
        There is no such file.
    MetadataError
        Damaged, too large, not of one of these kinds, or with other fields than `data`, `timestep` and `shape`; the
        message names file, record and field.

    """
    readers = {".jsonl": _json_lines, ".parquet": _parquet, ".arrow": _arrow}
    if path.suffix not in readers:
        raise MetadataError(f"{path}: calibration files end in {', '.join(SUFFIXES)}; rename or convert it")
    if not path.is_file():
        raise ModelNotFoundError(f"there is no calibration file {path}")
    last = 0
    for number, record in readers[path.suffix](path, n_values):
        if number > MAX_RECORDS:
            raise MetadataError(f"{path}: more than {MAX_RECORDS:,} records; a few hundred are enough")
        _check_fields(path, number, record)
        last = number
        yield number, record
    if not last:
        raise MetadataError(f"{path}: holds no records; remove it or put some in")


def _check_fields(path: Path, number: int, record: object) -> None:
    if not isinstance(record, dict):
        raise MetadataError(f"{path}, record {number}: must be an object with the fields {', '.join(FIELDS)}")
    missing = [name for name in FIELDS if name not in record]
    unknown = [name for name in record if name not in FIELDS]
    if missing or unknown:
        which = f"the field {missing[0]!r} is missing" if missing else f"the field {str(unknown[0])[:80]!r} is unknown"
        raise MetadataError(f"{path}, record {number}: {which}; a record has exactly {', '.join(FIELDS)}")


def _json_lines(path: Path, n_values: int) -> Iterator[tuple[int, Any]]:
    limit = LINE_NBYTES + NUMBER_NBYTES * n_values
    number = 0
    with path.open("rb") as stream:
        while line := stream.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise MetadataError(
                    f"{path}, record {number}: the line is longer than the {limit:,} bytes that {n_values:,} numbers "
                    "can need; one record per line"
                )
            if not line.strip():
                raise MetadataError(f"{path}, record {number}: the line is empty; remove it")
            try:
                yield number, json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                raise MetadataError(f"{path}, record {number}: not valid JSON ({str(error)[:200]})") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number of JSON")


def _parquet(path: Path, n_values: int) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa  # noqa: PLC0415 - loads slowly, and most runs have no such file
    import pyarrow.parquet as pq  # noqa: PLC0415

    unreadable = (OSError, pa.ArrowException, ValueError, TypeError, LookupError, MemoryError)
    try:
        with (
            arrow_file(path) as source,
            pq.ParquetFile(
                source,
                page_checksum_verification=True,
                thrift_string_size_limit=FOOTER_LIMIT_NBYTES,
                thrift_container_size_limit=FOOTER_LIMIT_NBYTES,
            ) as file,
        ):
            _check_schema(path, file.schema_arrow)
            _check_footer(path, file.metadata, n_values)
            batches = file.iter_batches(BATCH_RECORDS)
            number = 0
            while (batch := next(batches, None)) is not None:
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except unreadable as error:
        raise MetadataError(f"{path}: not a readable Parquet file ({str(error)[:200]})") from error


def _check_footer(path: Path, footer: Any, n_values: int) -> None:
    """Refuse counts and sizes that no such records have, before any page is unpacked."""
    if footer.num_rows > MAX_RECORDS:
        raise MetadataError(f"{path}: {footer.num_rows:,} records; at most {MAX_RECORDS:,} are read")
    most = max(1, n_values)
    for i in range(footer.num_row_groups):
        group = footer.row_group(i)
        for k in range(group.num_columns):
            chunk = group.column(k)
            values = group.num_rows * most
            if chunk.num_values > values or chunk.total_uncompressed_size > LINE_NBYTES + 16 * values:
                raise MetadataError(
                    f"{path}: column {chunk.path_in_schema!r} declares {chunk.num_values:,} values in "
                    f"{chunk.total_uncompressed_size:,} bytes, more than {group.num_rows:,} records of this model hold"
                )


def _check_schema(path: Path, schema: Any) -> None:
    """Refuse columns of types that no record has; nested at most once."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    def number(kind: Any) -> bool:
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))

    def numbers(kind: Any) -> bool:
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        # A column of empty lists (the shape of a class label) has no type of its own.
        return bool(lists and (number(kind.value_type) or pa.types.is_null(kind.value_type)))

    _check_fields(path, 1, dict.fromkeys(schema.names))
    for field in schema:
        kinds = [part.type for part in field.type] if pa.types.is_struct(field.type) else [field.type]
        right = number(field.type) if field.name == "timestep" else kinds and all(map(numbers, kinds))
        if not right:
            raise MetadataError(
                f"{path}: column {field.name!r} has type {str(field.type)[:200]}; timestep is an integer, data and "
                "shape are lists of numbers or structs of such lists"
            )


def _arrow(path: Path, n_values: int) -> Iterator[tuple[int, Any]]:
    """Read the messages of an IPC file or stream one by one; a file is a stream between a magic word and a footer."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    unreadable = (OSError, EOFError, pa.ArrowException, ValueError, TypeError, LookupError, struct.error, MemoryError)
    try:
        with pa.memory_map(os.fsencode(path)) as mapped:
            buffer = mapped.read_buffer()
            start = len(_ARROW_MAGIC) if buffer.slice(0, 6).to_pybytes() == _ARROW_MAGIC[:6] else 0
            messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(buffer.slice(start)))
            first = _next(messages)
            if first is None or first.type != "schema":
                raise MetadataError(f"{path}: begins with no schema: not an Arrow file; save it again")
            schema = pa.ipc.read_schema(first)
            _check_schema(path, schema)
            number = 0
            while (message := _next(messages)) is not None:
                if message.type != "record batch" or _compressed(message.metadata.to_pybytes()):
                    raise MetadataError(
                        f"{path}: message {message.type!r} is compressed or no record batch; save the records without "
                        "compression and dictionaries, or as Parquet"
                    )
                batch = pa.ipc.read_record_batch(message, schema)
                batch.validate(full=True)
                if batch.num_rows + number > MAX_RECORDS or _n_numbers(batch) > batch.num_rows * max(1, 4 * n_values):
                    raise MetadataError(
                        f"{path}: more than {MAX_RECORDS:,} records, or more numbers than they can hold"
                    )
                for part in range(0, batch.num_rows, BATCH_RECORDS):
                    for record in batch.slice(part, BATCH_RECORDS).to_pylist():
                        number += 1
                        yield number, record
    except unreadable as error:
        raise MetadataError(f"{path}: not a readable Arrow file ({str(error)[:200]})") from error


def _next(messages: Any) -> Any:
    try:
        return messages.read_next_message()
    except StopIteration:
        return None


def _n_numbers(batch: Any) -> int:
    """Return how many numbers stand in all lists of a batch."""
    columns = [part for c in batch.columns for part in (c.flatten() if hasattr(c, "field") else [c])]
    return sum(len(c.flatten()) for c in columns if hasattr(c, "value_lengths"))


def _compressed(metadata: bytes) -> bool:
    """Tell whether a record-batch message declares compressed buffers (format/Message.fbs of Arrow: field 3).

    The size that a compressed buffer unpacks to is whatever its first bytes claim, so such files are not read at all.
    """

    def field(table: int, number: int) -> int:
        vtable = table - int(struct.unpack_from("<i", metadata, table)[0])
        at = 4 + 2 * number
        if at >= struct.unpack_from("<H", metadata, vtable)[0]:
            return 0
        offset = int(struct.unpack_from("<H", metadata, vtable + at)[0])
        return table + offset if offset else 0

    header = field(struct.unpack_from("<I", metadata, 0)[0], 2)
    return field(header + struct.unpack_from("<I", metadata, header)[0], 3) != 0
