"""One stored tensor, lazily: views over mapped payloads, dequantized when asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from arrowquant_nb.errors import ArrowQuantError, ShapeMismatchError, ValidationError
from arrowquant_nb.quantizers.layout import (
    FLOAT16,
    FLOAT32,
    KEPT_BIT_WIDTH,
    WEIGHT_DTYPES,
    Layout,
    check_out_array,
    matrix_shape,
)
from arrowquant_nb.quantizers.low_rank import check_low_rank
from arrowquant_nb.quantizers.rotation import check_rotation
from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.fresh_memory import fresh_memory
from arrowquant_nb.storage.parquet_v2 import TileReference
from arrowquant_nb.storage.safetensors_file import DTYPES, QUANTIZABLE_DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import DTypeLike, NDArray


class PayloadSource(Protocol):
    """Where the bytes of a tile come from."""

    def payloads(self, tensor: LazyTensor, reference: TileReference) -> dict[str, memoryview]:
        """Return the bytes of each binary column of one tile."""


class LazyTensor:
    """One stored tensor; nothing is read before it is asked for.

    Attributes
    ----------
    name, shape, dtype : the source tensor (dtype as a string such as "float16").
    bit_width : 2, 4, 8, or 16 for a kept tensor.
    method, grid, group_size : how it was quantized ("" and 0 when kept).
    rotation_seed, low_rank : the rotation that dequantizing undoes, rank of the branch it adds (None and 0 without).
    nbytes : stored payload bytes.
    folding : what folding equalization did to the weights before they were stored, in words; empty where nothing.
    """

    def __init__(self, model: PayloadSource, name: str, entry: Mapping[str, Any]) -> None:
        self._model = model
        self._entry = entry
        self.name = name
        try:
            self.shape = tuple(int(n) for n in entry["shape"])
            self.dtype = str(entry["dtype"])
            self.bit_width = int(entry["bit_width"])
            self.method, self.grid, self.group_size = str(entry["method"]), str(entry["grid"]), int(entry["group_size"])
            self.file, self.source_file = str(entry["file"]), str(entry["source_file"])
            self.source_hash = str(entry["source_xxh3"])
            seed, self.low_rank = entry.get("rotation_seed"), int(entry.get("low_rank", 0))
            self.folding = str(entry.get("folding", ""))
            self.rotation_seed = None if seed is None else int(seed)
            self.references = [TileReference.from_dict(t) for t in entry["tiles"]]
            if "/" in self.source_file or "\0" in self.source_file or not self.source_file.endswith(".safetensors"):
                raise ShapeMismatchError(f"source file {self.source_file!r} is not the name of a safetensors file")
            self._check_sizes()
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, ArrowQuantError) as error:
            raise ValidationError(f"manifest entry of {name!r} is damaged: {type(error).__name__}: {error}") from error
        self.nbytes = sum(n for r in self.references for _, n in r.ranges.values())

    def _check_sizes(self) -> None:
        """Refuse tiles that do not cover every row once, and payloads whose sizes do not follow from the shape."""
        rows, columns = matrix_shape(self.shape)
        if min(self.shape, default=0) < 0 or self.dtype not in (DTYPES.values() if self.kept else QUANTIZABLE_DTYPES):
            raise ShapeMismatchError(f"shape {self.shape} of {self.dtype} cannot be")
        if self.kept and (self.rotation_seed is not None or self.low_rank):
            raise ShapeMismatchError("a kept tensor is neither rotated nor has it a low-rank branch")
        if self.rotation_seed is not None:
            check_rotation(self.name, columns, "hadamard", self.rotation_seed)
        check_low_rank(self.name, rows * columns, self.low_rank)
        n_covered = 0
        for reference in self.references:
            sizes = {column: nbytes for column, (_, nbytes) in reference.ranges.items()}
            equalization = 0 if self.kept else sizes.pop("equalization", 0)
            if equalization not in (0, 2 * columns, 4 * columns):
                raise ShapeMismatchError(f"an equalization of {equalization} bytes does not fit {columns} columns")
            branch = self._branch_sizes(reference, columns)
            possible = [base | branch for base in self._possible_sizes(reference.row_count, columns)]
            if reference.row_start != n_covered or sizes not in possible:
                raise ShapeMismatchError(
                    f"tile {reference.to_dict()} after {n_covered} rows does not fit shape {self.shape}"
                )
            n_covered += reference.row_count
        if n_covered != rows:
            raise ShapeMismatchError(f"tiles cover {n_covered} of {rows} rows")

    def _possible_sizes(self, rows: int, columns: int) -> list[dict[str, int]]:
        """Bytes of each payload of a tile: one answer for a kept tensor, one per scale dtype for a quantized one."""
        if self.kept:
            return [{"data": max(rows, 0) * columns * numpy_dtype(self.dtype).itemsize}]
        layout = Layout(rows, columns, self.bit_width, self.group_size, self.grid)
        names = ("data", "scales", "zero_points")
        return [
            {n: math.prod(shape) * dtype.itemsize for n, (shape, dtype) in zip(names, buffers, strict=True)}
            for buffers in (layout.buffers(FLOAT16), layout.buffers(FLOAT32))
        ]

    def _branch_sizes(self, reference: TileReference, columns: int) -> dict[str, int]:
        """Bytes of the low-rank factors: every tile has its rows of A, the first one has B."""
        if not self.low_rank:
            return {}
        b = {} if reference.row_start else {"low_rank_b": 2 * self.low_rank * columns}
        return {"low_rank_a": 2 * self.low_rank * reference.row_count, **b}

    @property
    def kept(self) -> bool:
        """True when the tensor is stored bit-exactly in its source dtype."""
        return self.bit_width == KEPT_BIT_WIDTH

    @property
    def stored_as(self) -> str:
        """In words: the dtype of a kept tensor, else width, method, group size, and what goes around the grid."""
        if self.kept:
            return self.dtype
        rotated = "" if self.rotation_seed is None else ", rotated"
        branch = f", rank {self.low_rank}" if self.low_rank else ""
        scales = "k " if self.grid == "k" else ""
        return f"INT{self.bit_width} {self.method} {scales}g{self.group_size}{rotated}{branch}"

    @property
    def n_weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element, scales and zero points counted."""
        return 8 * self.nbytes / self.n_weights if self.n_weights else 0.0

    @property
    def columns(self) -> int:
        """Columns of the matrix view [O, rest]."""
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else math.prod(self.shape)

    def tiles(self) -> Iterator[tuple[int, QuantizedTensor]]:
        """Yield (row_start, tile) views over the mapped file, no copy; only for quantized tensors."""
        if self.kept:
            raise ShapeMismatchError(f"{self.name!r} is kept in {self.dtype}: use dequantize() or bytes_view()")
        for reference in self.references:
            yield reference.row_start, self._tile(reference)

    def _tile(self, reference: TileReference) -> QuantizedTensor:
        payloads = self._model.payloads(self, reference)
        rows, columns = reference.row_count, self.columns
        layout = Layout(rows, columns, self.bit_width, self.group_size, self.grid)
        half_nbytes = self._possible_sizes(rows, columns)[0]["scales"]
        buffers = layout.buffers(FLOAT16 if len(payloads.get("scales", b"")) == half_nbytes else FLOAT32)
        try:
            packed, scales, zero_points = (
                np.frombuffer(payloads[name], dtype).reshape(shape)
                for name, (shape, dtype) in zip(("data", "scales", "zero_points"), buffers, strict=True)
            )
            low_rank_a, low_rank_b = self._branch(payloads, reference)
            stored = payloads.get("equalization")
            equalization: NDArray[Any] | None = None
            if stored is not None:
                equalization = np.frombuffer(stored, np.float16 if stored.nbytes == 2 * columns else np.float32)
        except (ValueError, KeyError) as error:
            raise ValidationError(
                f"{self.name!r} in {self.file!r}: stored sizes do not fit shape {self.shape}: {error}"
            ) from error
        return QuantizedTensor(
            packed=packed,
            scales=scales,
            zero_points=zero_points,
            shape=(rows, columns),
            bit_width=self.bit_width,
            group_size=self.group_size,
            method=self.method,
            grid=self.grid,
            dtype=self.dtype if self.dtype in WEIGHT_DTYPES else "float32",
            statistics=LayerStatistics(0, 0.0, 0.0, 0.0, 0.0),
            rotation_seed=self.rotation_seed,
            low_rank_a=low_rank_a,
            low_rank_b=low_rank_b,
            equalization=equalization,
        )

    def _branch(
        self, payloads: Mapping[str, memoryview], reference: TileReference
    ) -> tuple[NDArray[np.float16] | None, NDArray[np.float16] | None]:
        """View the low-rank factors of a tile; the second is the first tile's."""
        if not self.low_rank:
            return None, None
        first = payloads if reference.row_start == 0 else self._model.payloads(self, self.references[0])
        a = np.frombuffer(payloads["low_rank_a"], np.float16).reshape(reference.row_count, self.low_rank)
        return a, np.frombuffer(first["low_rank_b"], np.float16).reshape(self.low_rank, self.columns)

    def bytes_view(self) -> memoryview:
        """Source bytes of a kept tensor (joined when it spans several tiles)."""
        if not self.kept:
            raise ShapeMismatchError(f"{self.name!r} is quantized to {self.bit_width} bits: use dequantize()")
        parts = [self._model.payloads(self, r)["data"] for r in self.references]
        if len(parts) == 1:
            return parts[0]
        joined = fresh_memory(self.nbytes)
        np.concatenate([np.frombuffer(part, np.uint8) for part in parts], out=np.frombuffer(joined, np.uint8))
        return joined.toreadonly() if parts[0].readonly else joined

    def read_rows(self, row_start: int, row_count: int) -> NDArray[Any]:
        """Return rows of the matrix view, touching their tiles only: stored dtype when kept, else float32."""
        parts = [np.empty((0, self.columns), numpy_dtype(self.dtype if self.kept else "float32"))]
        for reference in self.references:
            first = max(row_start - reference.row_start, 0)
            last = min(row_start + row_count - reference.row_start, reference.row_count)
            if first < last:
                parts.append(self._tile_rows(reference)[first:last])
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def _tile_rows(self, reference: TileReference) -> NDArray[Any]:
        if not self.kept:
            return self._tile(reference).dequantize()
        data = np.frombuffer(self._model.payloads(self, reference)["data"], numpy_dtype(self.dtype))
        if data.size != reference.row_count * self.columns:
            raise ValidationError(f"{self.name!r} in {self.file!r}: {data.size} elements in {reference.row_count} rows")
        return data.reshape(reference.row_count, self.columns)

    def dequantize(
        self, dtype: DTypeLike | str | None = None, out: NDArray[Any] | None = None, n_threads: int = 0
    ) -> NDArray[Any]:
        """Return the tensor in its original shape; a kept tensor comes as a read-only view of the mapped file.

        Parameters
        ----------
        dtype : "float32", "float16" or "bfloat16"; default the source dtype for kept tensors, else "float32".
        out : buffer of the tensor's shape and of that dtype, C-contiguous; filled and returned.
        n_threads : threads for the kernel; 0 = all cores this process may use.
        """
        if self.kept:
            return self._kept_array(dtype, out)
        name = str(np.dtype(numpy_dtype(dtype) if dtype is not None else np.float32))
        target = np.empty(self.shape, numpy_dtype(name)) if out is None else out
        if target.shape != self.shape or target.dtype != numpy_dtype(name) or not target.flags.c_contiguous:
            raise ShapeMismatchError(
                f"out for {self.name!r} must be C-contiguous {name} {self.shape}, got {target.dtype} {target.shape}"
            )
        matrix = target.reshape(-1, self.columns)
        for row_start, tile in self.tiles():
            tile.dequantize(dtype=name, out=matrix[row_start : row_start + tile.rows], n_threads=n_threads)
        return target

    def _kept_array(self, dtype: DTypeLike | str | None, out: NDArray[Any] | None) -> NDArray[Any]:
        array = np.frombuffer(self.bytes_view(), numpy_dtype(self.dtype))
        if array.size != self.n_weights:
            raise ValidationError(
                f"{self.name!r} in {self.file!r}: {array.size} elements, shape {self.shape} needs {self.n_weights}"
            )
        array = array.reshape(self.shape)
        if dtype is not None:
            array = array.astype(numpy_dtype(dtype), copy=False)
        if out is None:
            return array
        check_out_array(f"out for {self.name!r}", out, self.shape, array.dtype)
        np.copyto(out, array)
        return out

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False and not self.kept:
            raise ValueError(f"{self.name!r} is quantized: an array of it is always a copy")
        array = self.dequantize()
        return np.array(array, dtype=dtype, copy=True if copy else None)

    def __repr__(self) -> str:
        kind = f"kept {self.dtype}" if self.kept else self.stored_as
        return f"LazyTensor({self.name!r}, {self.shape}, {kind}, {self.bits_per_weight:.4f} bits per weight)"
