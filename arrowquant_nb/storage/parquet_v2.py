"""Parquet V2 Extended: the schema, one data file written tile by tile, and where its payloads lie.

One row is one tile is one row group; binary columns are plain, uncompressed and in one page, so the payload of a
tile is a contiguous byte range of a standard Parquet file and can be mapped without a copy.

With code the integer of a weight, s, m, a1, a2, mu float16 (float32 where that is out of range) per group, `grid` says:
    zero_point  w = (code - z) s            scales s; zero_points z, packed like the codes
    minimum     w = s code + m              scales s; zero_points m
    levels      w = (mu +- a1) +- a2        scales pairs a1, a2; zero_points mu; INT2 only, bit 1 of a code is the sign
                                            of a1, bit 0 that of a2, 1 = plus
    k           w = d sc code - dmin mn     scales d per 256 weights and integers sc per group; zero_points dmin and mn
Knows nothing of models, manifests or how codes came about.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from arrowquant_nb.arrow_files import arrow_file
from arrowquant_nb.errors import ValidationError
from arrowquant_nb.storage.durable import as_output_error, drop

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

SCHEMA_VERSION = "2.1"
METADATA_KEY = b"arrowquant"
PACK_ORDER = "code i of a byte in bits [i*bit_width, (i+1)*bit_width), rows start on a byte"
BINARY_COLUMNS = ("data", "scales", "zero_points", "low_rank_a", "low_rank_b", "equalization")
STATISTICS_COLUMNS = ["sqnr_db", "cosine"]
# Larger than any tile, so that every payload stays in one page.
PAGE_NBYTES = 1 << 30

SCHEMA = pa.schema(
    [
        pa.field("layer_name", pa.string(), nullable=False),
        pa.field("tile", pa.int32(), nullable=False),
        pa.field("row_start", pa.int64(), nullable=False),
        pa.field("row_count", pa.int64(), nullable=False),
        pa.field("bit_width", pa.int8(), nullable=False),
        pa.field("group_size", pa.int32(), nullable=False),
        pa.field("quant_type", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("grid", pa.string(), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
        pa.field("scales", pa.binary()),
        pa.field("zero_points", pa.binary()),
        pa.field("rotation_seed", pa.int64()),
        pa.field("low_rank_a", pa.binary()),
        pa.field("low_rank_b", pa.binary()),
        pa.field("equalization", pa.binary()),
        pa.field("row_xxh3", pa.binary(8), nullable=False),
        pa.field("sqnr_db", pa.float64(), nullable=False),
        pa.field("cosine", pa.float64(), nullable=False),
        pa.field("mse", pa.float64(), nullable=False),
        pa.field("w_absmax", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Tile:
    """One row to store: a run of rows of one tensor.

    Attributes
    ----------
    layer_name, tile, row_start, row_count : which rows of which tensor (matrix view [O, rest]).
    bit_width : 2, 4, 8, or 16 for a kept tensor.
    quant_type : "int2", "int4", "int8" or "kept".
    data : uint8 codes, or the raw source bytes of a kept tensor.
    scales, zero_points : arrays as the kernel wrote them, None for kept tensors. Grid k: bytes of every row, one float
        per 256 weights and then one integer of 6 (int4) or 4 bits (int2) per group.
    rotation_seed : signs of the Hadamard rotation that dequantizing undoes, the same in every tile; None = none.
    low_rank_a : float16 (row_count, rank), this tile's rows of the branch; None = no branch.
    low_rank_b : float16 (rank, columns), the branch's other factor, in the first tile only.
    equalization : float16 or float32, one per column; dequantized columns are divided by it.
    sqnr_db, cosine, mse, w_absmax : error of this tile from the stored values.
    """

    layer_name: str
    tile: int
    row_start: int
    row_count: int
    bit_width: int
    group_size: int
    quant_type: str
    method: str
    grid: str
    data: NDArray[Any]
    scales: NDArray[Any] | None
    zero_points: NDArray[Any] | None
    sqnr_db: float
    cosine: float
    mse: float
    w_absmax: float
    rotation_seed: int | None = None
    low_rank_a: NDArray[Any] | None = None
    low_rank_b: NDArray[Any] | None = None
    equalization: NDArray[Any] | None = None

    def payloads(self) -> dict[str, memoryview]:
        """Bytes of each binary column that is present."""
        arrays = {
            "data": self.data, "scales": self.scales, "zero_points": self.zero_points,
            "low_rank_a": self.low_rank_a, "low_rank_b": self.low_rank_b, "equalization": self.equalization,
        }  # fmt: skip
        return {k: v.data.cast("B") if v.nbytes else memoryview(b"") for k, v in arrays.items() if v is not None}


@dataclass(frozen=True)
class TileReference:
    """Where the payloads of a tile lie in its file, as (offset, nbytes) per binary column."""

    row_start: int
    row_count: int
    ranges: dict[str, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest."""
        return {"rows": [self.row_start, self.row_count], **{k: list(v) for k, v in self.ranges.items()}}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> TileReference:
        """Read `to_dict`; malformed values raise `KeyError`, `TypeError` or `ValueError`."""
        start, count = (int(v) for v in data["rows"])
        ranges = {k: (int(data[k][0]), int(data[k][1])) for k in BINARY_COLUMNS if k in data}
        return TileReference(start, count, ranges)


def _binary(payload: memoryview | None) -> pa.Array:
    if payload is None:
        return pa.nulls(1, pa.binary())
    offsets = pa.array([0, payload.nbytes], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(payload)])


def row_hash(payloads: Mapping[str, memoryview]) -> bytes:
    """Return the xxh3-64 over all binary columns that are present, in column order."""
    digest = xxhash.xxh3_64()
    for column in BINARY_COLUMNS:
        if column in payloads:
            digest.update(payloads[column])
    return digest.digest()


def _row(tile: Tile) -> pa.RecordBatch:
    payloads = tile.payloads()
    values: dict[str, Any] = {
        name: pa.array([getattr(tile, name)], SCHEMA.field(name).type)
        for name in (
            "layer_name",
            "tile",
            "row_start",
            "row_count",
            "bit_width",
            "group_size",
            "quant_type",
            "method",
            "grid",
            "rotation_seed",
            "sqnr_db",
            "cosine",
            "mse",
            "w_absmax",
        )
    }
    for column in BINARY_COLUMNS:
        values[column] = _binary(payloads.get(column))
    values["row_xxh3"] = pa.array([row_hash(payloads)], pa.binary(8))
    return pa.RecordBatch.from_arrays([values[n] for n in SCHEMA.names], schema=SCHEMA)


class TileFileWriter:
    """Writes tiles to one Parquet file and says where their payloads landed.

    Raises
    ------
    OutputError
        When the file cannot be written (full disk, file-size limit, permissions); the partial file is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tiles: list[tuple[int, int, dict[str, int]]] = []
        try:
            self._file = arrow_file(path, "wb")
            self._writer = pq.ParquetWriter(
                self._file,
                SCHEMA,
                version="2.6",
                compression="none",
                use_dictionary=False,
                data_page_size=PAGE_NBYTES,
                write_statistics=STATISTICS_COLUMNS,
                write_page_checksum=True,
                store_schema=False,
            )
        except OSError as error:
            raise as_output_error(error, path) from error

    def append(self, tile: Tile) -> None:
        """Write one tile as one row group."""
        try:
            self._writer.write_batch(_row(tile), row_group_size=1)
        except OSError as error:
            self.abort()
            raise as_output_error(error, self.path) from error
        sizes = {k: v.nbytes for k, v in tile.payloads().items()}
        self._tiles.append((tile.row_start, tile.row_count, sizes))

    def close(self, metadata: Mapping[str, Any]) -> list[TileReference]:
        """Add the JSON metadata, finish the file and return the place of every payload."""
        text = json.dumps(
            {"schema_version": SCHEMA_VERSION, "pack_order": PACK_ORDER, **metadata},
            sort_keys=True,
            separators=(",", ":"),
        )
        try:
            self._writer.add_key_value_metadata({METADATA_KEY.decode(): text})
            self._writer.close()
            self._file.close()
            with arrow_file(self.path) as file:
                footer = pq.read_metadata(file)
        except OSError as error:
            self.abort()
            raise as_output_error(error, self.path) from error
        return [
            TileReference(start, count, {c: (_payload_offset(footer, i, c, n), n) for c, n in sizes.items()})
            for i, (start, count, sizes) in enumerate(self._tiles)
        ]

    def abort(self) -> None:
        """Drop the file, whatever state it is in."""
        # The file is removed on the next line; what broke it is reported by whoever aborts.
        with contextlib.suppress(OSError, pa.ArrowException, ValueError):
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()
        drop(self.path)


def _payload_offset(footer: pq.FileMetaData, row_group: int, column: str, nbytes: int) -> int:
    """File offset of a one-page, plain, uncompressed payload (data_page_offset + chunk size - payload size)."""
    chunk = footer.row_group(row_group).column(SCHEMA.get_field_index(column))
    plain = (
        set(chunk.encodings) <= {"PLAIN", "RLE"}
        and chunk.compression == "UNCOMPRESSED"
        and not chunk.has_dictionary_page
    )
    if not plain or chunk.num_values != 1:
        raise ValidationError(f"column {column!r} of row group {row_group} is not one plain uncompressed page")
    return int(chunk.data_page_offset) + int(chunk.total_compressed_size) - nbytes
