"""Reading one data file through the Parquet library, every checksum verified; needs nothing but the file itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from arrowquant_nb.arrow_files import arrow_file
from arrowquant_nb.errors import ValidationError
from arrowquant_nb.storage.parquet_v2 import BINARY_COLUMNS, METADATA_KEY, SCHEMA, SCHEMA_VERSION, row_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

FOOTER_LIMIT_NBYTES = 64 << 20
# What the Parquet library raises on damaged footers and pages (names that are no UTF-8 are a ValueError).
_UNREADABLE = (OSError, pa.ArrowException, ValueError, TypeError, LookupError)


class ParquetV2Extended:
    """One data file, read through the Parquet library with page checksums verified.

    This is the route that needs nothing but the file itself: mapping by the manifest's offsets is faster, this one
    checks more. `open_quantized` uses it where a mapped range does not hold what its length prefix says.

    Parameters
    ----------
    path : path of one `*.parquet` data file.

    Raises
    ------
    ValidationError
        For anything that is not a readable file of schema major version 2.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = pq.ParquetFile(
                arrow_file(self.path),
                page_checksum_verification=True,
                thrift_string_size_limit=FOOTER_LIMIT_NBYTES,
                thrift_container_size_limit=FOOTER_LIMIT_NBYTES,
            )
            types = {field.name: field.type for field in self._file.schema_arrow}
        except _UNREADABLE as error:
            raise ValidationError(f"{self.path.name!r} is not a readable Parquet file: {error}") from error
        self.metadata: dict[str, Any] = self._read_metadata()
        wrong = [field.name for field in SCHEMA if types.get(field.name) != field.type]
        if wrong:
            raise ValidationError(f"{self.path.name!r}: columns {wrong} are missing or of another type")

    def _read_metadata(self) -> dict[str, Any]:
        raw = (self._file.schema_arrow.metadata or {}).get(METADATA_KEY) or (self._file.metadata.metadata or {}).get(
            METADATA_KEY
        )
        try:
            value = json.loads(raw) if raw else None
        except (ValueError, RecursionError) as error:
            raise ValidationError(f"{self.path.name!r}: the 'arrowquant' metadata is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValidationError(f"{self.path.name!r} has no 'arrowquant' metadata: not a Parquet V2 Extended file")
        version = str(value.get("schema_version"))
        if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
            raise ValidationError(
                f"{self.path.name!r} has schema version {version}; this version reads 2.x: update arrowquant_nb"
            )
        return value

    @property
    def n_tiles(self) -> int:
        """Number of rows, which is the number of tiles."""
        return int(self._file.metadata.num_rows)

    def rows(self, layer_name: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield each tile as a dictionary of its columns, row hash verified; only those of `layer_name` when given."""
        for i in range(self._file.metadata.num_row_groups):
            try:
                if (
                    layer_name is not None
                    and self._file.read_row_group(i, ["layer_name"])["layer_name"][0].as_py() != layer_name
                ):
                    continue
                row: dict[str, Any] = self._file.read_row_group(i).to_pylist()[0]
            except _UNREADABLE as error:
                raise ValidationError(f"{self.path.name!r}, row group {i}: {error}") from error
            payloads = {c: memoryview(row[c]) for c in BINARY_COLUMNS if row.get(c) is not None}
            if row_hash(payloads) != row["row_xxh3"]:
                raise ValidationError(
                    f"{self.path.name!r}, {row['layer_name']!r}, tile {row['tile']}: bytes do not match their hash"
                )
            yield row

    def __repr__(self) -> str:
        return f"ParquetV2Extended({self.path.name!r}, {self.n_tiles} tiles)"
