"""One safetensors file: its header, and reads of byte ranges that notice when the file changes.

The `safetensors` library validates the header (sizes, overlaps, holes, dtypes); we read the same bytes
again for the offsets and for what the library lets pass (duplicate keys). Tensor data come by
`preadv` into a buffer of the caller: no memory map, so no SIGBUS and no pages that count as ours.
Knows nothing about models, layers or what a tensor is for.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from arrowquant_nb.errors import CheckpointError, ModelNotFoundError, ShapeMismatchError
from arrowquant_nb.storage.json_file import DuplicateKeyError, reject_duplicate_keys

MAX_HEADER_NBYTES = 100_000_000  # the library's own limit
MAX_TENSORS = 250_000  # the largest public checkpoints hold about 100,000 in all their shards together
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
QUANTIZABLE_DTYPES = ("float32", "float16", "bfloat16", *FLOAT8)
# Formats that people rename or mistake for safetensors, by their first bytes.
FOREIGN_MAGIC = {
    b"GGUF": "a GGUF file; quantize from the float safetensors checkpoint it was made from",
    b"PK\x03\x04": "a zip archive, probably a PyTorch pickle; nothing in it is executed here. Convert it: "
    "safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'model.safetensors')",
    b"\x80": "a Python pickle; nothing in it is executed here. Convert it: "
    "safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'model.safetensors')",
    b"PAR1": "a Parquet file; give the model folder that holds manifest.json",
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull` to get the weights",
    b"<!DOCTYPE": "an HTML page, not weights; download it again",
    b"<html": "an HTML page, not weights; download it again",
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor as it lies in a file; nothing of it has been read."""

    name: str
    """Name in the checkpoint; data only, never a path."""
    shape: tuple[int, ...]
    """Stored shape; `[O, I]` for linear weights, `[O, I, kh, kw]` for convolutions."""
    dtype: str
    """NumPy name of the stored dtype (`float32`, `bfloat16`, `float8_e4m3fn`, `int64`, ...)."""
    file: Path
    """The safetensors file."""
    offset: int
    """First byte of the data, from the start of the file."""
    nbytes: int
    """Bytes of data in the file."""
    scale: str | None = None
    """Name of the scale tensor that multiplies a float8 weight; it is not listed on its own."""

    @property
    def rows(self) -> int:
        """Rows of the matrix view `[O, prod(rest)]`; 1 for 0-d and 1-d tensors."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def columns(self) -> int:
        """Columns of the matrix view; all elements for 0-d and 1-d tensors."""
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else math.prod(self.shape)

    @property
    def n_elements(self) -> int:
        """Number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)

    @property
    def value_dtype(self) -> str:
        """Dtype in which rows are delivered: float32 for float8, else the stored dtype."""
        return "float32" if self.dtype in FLOAT8 else self.dtype

    @property
    def verbatim(self) -> bool:
        """Whether the rows that are delivered are the stored bytes."""
        return self.dtype not in FLOAT8

    @property
    def kept_dtype(self) -> str:
        """Dtype of `Checkpoint.read_bytes`: the stored one, float32 where a scale has been multiplied in."""
        return "float32" if self.scale is not None else self.dtype


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Identity of a file at the time its header was read; a change means the source changed."""

    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What one file says: tensors in file order, free-text metadata, and the identity of the file."""

    entries: tuple[TensorEntry, ...]
    metadata: dict[str, str]
    stamp: FileStamp


def quoted(name: str, limit: int = 120) -> str:
    """Return a name from a file fit for a message: escaped, at most `limit` characters of it.

    >>> quoted("x" * 200, limit=4)
    "'xxxx'... (200 characters)"
    """
    return repr(name) if len(name) <= limit else f"{name[:limit]!r}... ({len(name):,} characters)"


def stamp_of(path: Path) -> FileStamp:
    """Return the identity of a regular file; anything else (folder, pipe, device) is a CheckpointError."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path}: not a regular file; give a safetensors file or a model folder")
    return FileStamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of one safetensors file; no tensor data are read.

    At most 100 MB are read and 250,000 tensors listed, whatever the file claims.

    Raises
    ------
    CheckpointError
        Empty, truncated, overlapping, of another format, with a key twice, or changed while it was read.
    """
    stamp = stamp_of(path)
    header = _header_bytes(path, stamp)
    if header.count(b"{") > MAX_TENSORS + 2:
        raise CheckpointError(f"{path}: the header lists more than {MAX_TENSORS:,} tensors; no model file does")
    try:
        with safe_open(os.fspath(path), framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a valid safetensors file ({str(error)[:300]}); download or save it again"
        ) from error
    try:
        fields = json.loads(header, object_pairs_hook=reject_duplicate_keys)
    except DuplicateKeyError as error:
        raise CheckpointError(
            f"{path}: the header names {quoted(str(error))} twice, so it is unclear which one is meant; save it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON ({str(error)[:200]}); save it again") from error
    if stamp_of(path) != stamp:
        raise _changed(path)
    metadata = fields.pop("__metadata__", None) or {}
    entries = sorted(_entries(path, fields, 8 + len(header)), key=lambda entry: (entry.offset, entry.nbytes))
    return SafetensorsHeader(tuple(entries), metadata, stamp)


def read_into(path: Path, stamp: FileStamp, offset: int, buffer: NDArray[np.uint8]) -> None:
    """Fill `buffer` (OUT, contiguous bytes) from `offset`; the file must still be the one of `stamp`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read any more ({error.strerror})") from error
    try:
        _check_unchanged(descriptor, path, stamp)
        done = 0
        while done < buffer.nbytes:
            n_read = os.preadv(descriptor, [buffer.data[done:]], offset + done)
            if n_read == 0:
                raise CheckpointError(f"{path}: ends at byte {offset + done:,}; it was cut while it was read")
            done += n_read
        _check_unchanged(descriptor, path, stamp)
    except OSError as error:
        raise CheckpointError(f"{path}: reading byte {offset:,} failed ({error.strerror})") from error
    finally:
        os.close(descriptor)


def byte_buffer(out: NDArray[np.uint8] | None, nbytes: int, name: str) -> NDArray[np.uint8]:
    """Return the first `nbytes` of `out`, or a fresh buffer; a small or unusable `out` is a ShapeMismatchError."""
    if out is None:
        return np.empty(nbytes, np.uint8)
    if out.dtype != np.uint8 or out.ndim != 1 or not out.flags.c_contiguous or out.nbytes < nbytes:
        raise ShapeMismatchError(
            f"the buffer for {quoted(name)} must be 1-d contiguous uint8 of at least {nbytes:,} bytes, "
            f"found {out.dtype} {out.shape}"
        )
    return out[:nbytes]


def _header_bytes(path: Path, stamp: FileStamp) -> bytes:
    if stamp.size == 0:
        raise CheckpointError(f"{path}: empty file; download it again")
    start = np.empty(min(stamp.size, 32), np.uint8)
    read_into(path, stamp, 0, start)
    length = int.from_bytes(start[:8].tobytes(), "little")
    # A pickle starts with 80 02, and so does a safetensors file whose header has 640 bytes: look for the brace too.
    if length > MAX_HEADER_NBYTES or start[8:9].tobytes() != b"{":
        for magic, hint in FOREIGN_MAGIC.items():
            if start.tobytes().startswith(magic):
                raise CheckpointError(f"{path}: this is {hint}")
    if stamp.size < 8:
        raise CheckpointError(f"{path}: {stamp.size} bytes are too few for a safetensors file; download it again")
    if length > MAX_HEADER_NBYTES:
        raise CheckpointError(
            f"{path}: claims a header of {length:,} bytes, at most {MAX_HEADER_NBYTES:,} are allowed; "
            "not a safetensors file, or damaged"
        )
    if 8 + length > stamp.size:
        raise CheckpointError(
            f"{path}: claims a header of {length:,} bytes but has only {stamp.size:,}; the download was cut, repeat it"
        )
    header = np.empty(length, np.uint8)
    read_into(path, stamp, 8, header)
    return header.tobytes()


def _entries(path: Path, fields: dict[str, dict[str, object]], data_start: int) -> Iterator[TensorEntry]:
    for name, info in fields.items():
        code, shape, span = info["dtype"], info["shape"], info["data_offsets"]
        if not (isinstance(code, str) and isinstance(shape, list) and isinstance(span, list)):
            raise CheckpointError(f"{path}: the header entry of {quoted(name)} is malformed; save the file again")
        if code not in DTYPES:
            raise CheckpointError(
                f"{path}: {quoted(name)} is stored as {code}, which is not supported; "
                "give the float checkpoint (F32, F16, BF16, F8_E4M3 or F8_E5M2)"
            )
        yield TensorEntry(name, tuple(shape), DTYPES[code], path, data_start + span[0], span[1] - span[0])


def _check_unchanged(descriptor: int, path: Path, stamp: FileStamp) -> None:
    found = os.fstat(descriptor)
    if FileStamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) != stamp:
        raise _changed(path)


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: changed while it was read; wait until nothing writes to it and start again")
