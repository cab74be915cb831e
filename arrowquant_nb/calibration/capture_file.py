"""Whole calibrations written to and read from Parquet.

One row per block of one array, so that no value grows beyond what Parquet can hold; layers that share an input share
its rows. Every block and the whole carry a hash, and nothing is believed before it fits.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from arrowquant_nb.arrow_files import arrow_file
from arrowquant_nb.calibration.record_files import FOOTER_LIMIT_NBYTES
from arrowquant_nb.calibration.scratch import Scratch
from arrowquant_nb.calibration.sealed_footer import check_footer, seal_footer
from arrowquant_nb.calibration.statistics import ARRAYS, Calibration, CalibrationSettings, LayerCapture
from arrowquant_nb.errors import (
    MetadataError,
    OutputError,
    ShapeMismatchError,
    ValidationError,
)
from arrowquant_nb.fsync import fsync_path
from arrowquant_nb.time_reading import TimeReading

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray


FORMAT_VERSION: Final = "1.1"
METADATA_KEY: Final = b"arrowquant_calibration"
BLOCK_NBYTES: Final = 16 << 20
METADATA_LIMIT_NBYTES: Final = 16 << 20
MEMORY_NBYTES: Final = 2 << 30
"""Arrays of a file that are read into memory; what is beyond goes to the temporary folder, mapped."""
_PAGE_NBYTES: Final = 1 << 30


def is_capture(path: Path) -> bool:
    """Tell whether a file is a calibration of ours, not a list of records."""
    if path.suffix != ".parquet":
        return False
    with _opened(path) as file:
        return METADATA_KEY in (file.metadata.metadata or {})


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a whole calibration to one Parquet file, under its name when it is complete.

    Raises
    ------
    OutputError
        It cannot be written.

    """
    import pyarrow as pa  # noqa: PLC0415 - loads slowly, and a cached calibration is seldom written
    import pyarrow.parquet as pq  # noqa: PLC0415

    schema = _schema().with_metadata({METADATA_KEY: json.dumps(_description(calibration), sort_keys=True).encode()})
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with arrow_file(temporary, "wb") as file, pq.ParquetWriter(
            file, schema, compression="none", use_dictionary=False, write_page_checksum=True,
            data_page_size=_PAGE_NBYTES, write_statistics=False,
        ) as writer:  # fmt: skip
            for name in calibration.inputs:
                for row in _blocks(calibration[name]):
                    values = {k: pa.array([v], schema.field(k).type) for k, v in row.items()}
                    writer.write_batch(pa.RecordBatch.from_arrays(list(values.values()), schema=schema), 1)
        seal_footer(temporary)
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write the calibration {path} ({error.strerror or error}); free space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone already, or the folder never was one
            temporary.unlink()


def read_calibration(path: Path) -> Calibration:
    """Read what `write_calibration` wrote.

    Raises
    ------
    ValidationError
        Damaged: not readable, cut, or bytes that do not match their hashes.
    MetadataError, ShapeMismatchError
        Readable, but no calibration: unknown version, missing or impossible arrays.

    """
    with _opened(path) as file:
        description = _read_description(path, file.metadata.metadata)
        arrays = _read_blocks(path, file, path.stat().st_size)
    try:
        calibration = _rebuilt(description, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ShapeMismatchError):
            raise ShapeMismatchError(f"{path}: {error}") from error
        raise MetadataError(f"{path}: its description does not fit its arrays ({str(error)[:300]})") from error
    except MetadataError as error:
        raise MetadataError(f"{path}: {error}") from error
    if calibration.data_hash != description.get("data_hash"):
        raise ValidationError(f"{path}: the arrays do not match the file's hash; it was changed: calibrate again")
    return calibration


def _schema() -> Any:
    import pyarrow as pa  # noqa: PLC0415 - as above

    kinds = {
        "layer_name": pa.string(),
        "array": pa.string(),
        "dtype": pa.string(),
        "shape": pa.list_(pa.int64()),
        "start": pa.int64(),
        "count": pa.int64(),
        "data": pa.binary(),
        "xxh3": pa.binary(8),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _blocks(layer: LayerCapture) -> Iterator[dict[str, Any]]:
    """Yield the arrays of a layer as rows of the file, at most 16 MiB each, cut along the first axis."""
    for field in ARRAYS:
        array = np.ascontiguousarray(getattr(layer, field))
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        step = max(1, BLOCK_NBYTES // max(1, array[0].nbytes))
        for start in range(0, len(array), step):
            data = little[start : start + step].tobytes()
            yield {
                "layer_name": layer.name,
                "array": field,
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "start": start,
                "count": min(step, len(array) - start),
                "data": data,
                "xxh3": xxhash.xxh3_64(data).digest(),
            }


def _description(calibration: Calibration) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "source": calibration.source,
        "settings": calibration.settings.to_dict(),
        "model_hash": calibration.model_hash,
        "records_hash": calibration.records_hash,
        "data_hash": calibration.data_hash,
        "layers": {name: layer.input_name for name, layer in calibration.items()},
        "order": list(calibration),
        "unobserved": list(calibration.unobserved),
        "time_reading": calibration.time_reading.to_dict(),
        "inputs": {
            name: {"n_rows": calibration[name].n_rows, "histogram_range": list(calibration[name].histogram_range)}
            for name in calibration.inputs
        },
    }


def _rebuilt(description: Mapping[str, Any], arrays: Mapping[tuple[str, str], NDArray[Any]]) -> Calibration:
    layers: dict[str, LayerCapture] = {}
    for name in description["order"]:
        leader = description["layers"][name]
        facts = description["inputs"][leader]
        low, high = facts["histogram_range"]
        layers[name] = LayerCapture(
            name=name,
            input_name=leader,
            n_rows=int(facts["n_rows"]),
            histogram_range=(float(low), float(high)),
            **{field: arrays[leader, field] for field in ARRAYS},
        )
    settings = CalibrationSettings(**description["settings"])
    model, records = str(description["model_hash"]), str(description["records_hash"])
    unobserved = tuple(str(name) for name in description.get("unobserved", []))
    reading = TimeReading.from_dict(description.get("time_reading", {}))
    return Calibration(layers, str(description["source"]), settings, model, records, unobserved, reading)


def _opened(path: Path) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - as above
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        check_footer(path)
        return pq.ParquetFile(
            arrow_file(path),
            page_checksum_verification=True,
            thrift_string_size_limit=FOOTER_LIMIT_NBYTES,
            thrift_container_size_limit=FOOTER_LIMIT_NBYTES,
        )
    except (OSError, pa.ArrowException, ValueError, TypeError, LookupError, MemoryError) as error:
        raise ValidationError(f"{path} is not a readable Parquet file ({str(error)[:200]}); write it again") from error


def _read_description(path: Path, metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    raw = (metadata or {}).get(METADATA_KEY)
    if raw is None or len(raw) > METADATA_LIMIT_NBYTES:
        raise MetadataError(f"{path}: has no description of a calibration, or one that is too long; write it again")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"{path}: the description of the calibration is not JSON ({str(error)[:200]})") from error
    if not isinstance(found, dict) or str(found.get("format_version")).partition(".")[0] != FORMAT_VERSION[0]:
        version = str(found.get("format_version"))[:40] if isinstance(found, dict) else "?"
        raise MetadataError(f"{path}: is of calibration format {version}; this version reads 1.x: update arrowquant_nb")
    return found


def _read_blocks(path: Path, file: Any, file_nbytes: int) -> dict[tuple[str, str], NDArray[Any]]:
    """Read and check every block; what the footer declares is compared with the file's size before it is read."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    if file.schema_arrow.remove_metadata() != _schema():
        raise MetadataError(f"{path}: its columns are not those of a stored calibration; write it again")
    scratch = Scratch(MEMORY_NBYTES)
    arrays: dict[tuple[str, str], NDArray[Any]] = {}
    filled: dict[tuple[str, str], int] = {}
    for number in range(file.metadata.num_row_groups):
        _check_row_group(path, file.metadata.row_group(number), file_nbytes)
        try:
            row = file.read_row_group(number).to_pylist()[0]
        except (OSError, pa.ArrowException, ValueError, TypeError, LookupError, MemoryError) as error:
            raise ValidationError(f"{path}, block {number}: {str(error)[:200]}; write the file again") from error
        if xxhash.xxh3_64(row["data"]).digest() != row["xxh3"]:
            raise ValidationError(f"{path}, block {number}: bytes do not match their hash; write the file again")
        _place(path, number, row, arrays, filled, file_nbytes, scratch)
    short = [key for key, array in arrays.items() if filled[key] != len(array)]
    if short:
        raise ValidationError(f"{path}: {short[0][1]} of {short[0][0]!r} is incomplete; write the file again")
    return arrays


def _check_row_group(path: Path, group: Any, file_nbytes: int) -> None:
    chunks = [group.column(k) for k in range(group.num_columns)]
    plain = all(c.compression == "UNCOMPRESSED" and not c.has_dictionary_page for c in chunks)
    if group.num_rows != 1 or not plain or sum(c.total_uncompressed_size for c in chunks) > file_nbytes:
        raise MetadataError(f"{path}: a block is not one plain, uncompressed row that fits into the file")


def _place(
    path: Path,
    number: int,
    row: Mapping[str, Any],
    arrays: dict[tuple[str, str], NDArray[Any]],
    filled: dict[tuple[str, str], int],
    file_nbytes: int,
    scratch: Scratch,
) -> None:
    """Copy one block into its array."""
    field, shape, key = row["array"], row["shape"], (row["layer_name"], row["array"])
    where = f"{path}, block {number}: {str(field)[:40]} of {str(row['layer_name'])[:200]!r}"
    dtype, ndim = ARRAYS.get(field, (np.uint8, -1))
    if row["dtype"] != str(np.dtype(dtype)) or len(shape) != ndim or any(n < 1 or n > file_nbytes for n in shape):
        raise ShapeMismatchError(f"{where} has dtype {str(row['dtype'])[:40]} and shape {str(shape)[:80]}")
    nbytes = int(np.dtype(dtype).itemsize)
    for n in shape:
        nbytes *= int(n)
    declared = sum(array.nbytes for array in arrays.values())
    if nbytes + (declared if key not in arrays else 0) > file_nbytes:
        raise ShapeMismatchError(f"{where} declares {nbytes:,} bytes, more than the file has; write it again")
    if key not in arrays:
        arrays[key], filled[key] = scratch.zeros(tuple(shape), dtype), 0
    array, start, count = arrays[key], row["start"], row["count"]
    expected = nbytes // shape[0] * count
    if list(array.shape) != shape or start != filled[key] or not 1 <= count <= len(array) - start:
        raise ShapeMismatchError(f"{where} does not follow the block before it; write the file again")
    if len(row["data"]) != expected:
        raise ShapeMismatchError(f"{where} has {len(row['data']):,} bytes instead of {expected:,}")
    block = np.frombuffer(row["data"], np.dtype(dtype).newbyteorder("<")).reshape(count, *shape[1:])
    array[start : start + count] = block
    filled[key] += count
