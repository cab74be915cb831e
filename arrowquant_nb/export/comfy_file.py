"""One safetensors file for ComfyUI: `int8_tensorwise` or `convrot_w4a4` weights beside the tensors that stay float.

A quantized matrix X.weight becomes

    X.weight         int8 [rows, columns], or for convrot_w4a4 two codes a byte, [rows, columns / 2]
    X.weight_scale   float32 [rows, 1], for convrot_w4a4 [rows]
    X.comfy_quant    uint8, JSON: {"format": ..., "convrot": true, "convrot_groupsize": 256}

Both formats have one scale per row, so every matrix is rounded again from its dequantized values.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.export.comfy_rounding import (
    INT4_COLUMNS,
    rotated,
    rotation_group,
    round_rows_to_int4,
    round_rows_to_int8,
)
from arrowquant_nb.export.report import ExportReport, TensorExport
from arrowquant_nb.export.rounding_error import RoundingError
from arrowquant_nb.export.time_tables import tables_not_held
from arrowquant_nb.runs.dequantization import bytes_back, float_dtype
from arrowquant_nb.storage.safetensors_folder import TensorToWrite, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from arrowquant_nb.export.options import ExportOptions
    from arrowquant_nb.storage.lazy_tensor import LazyTensor
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["FORMATS", "write_comfy"]

INT8, W4A4 = FORMATS = ("int8_tensorwise", "convrot_w4a4")
_LEAF = ".weight"


def write_comfy(
    model: QuantizedModel,
    path: Path,
    options: ExportOptions,
    progress_callback: Callable[[str, float], None] | None = None,
) -> ExportReport:
    """Write an open model to a new file; one tensor is in memory at a time.

    Parameters
    ----------
    model, path, progress_callback : what, where, and who is told.
    options : as `weight_type` int8_tensorwise (the default) or convrot_w4a4.
    """
    options.check_weight_type("comfy", FORMATS)
    options.check_convolutions("comfy")
    written = _Written(model, options.weight_type or INT8, progress_callback)
    write_safetensors(path, [part for name in model for part in written.tensors(name)], written.content)
    exported = tuple(written.report(name) for name in model)
    total = sum(tensor.nbytes for tensor in exported)
    return ExportReport("comfy", path.name, total, exported, tables_not_held(model), _remarks(written.format))


class _Written:
    """What stands in the file for each tensor, and its bytes when their turn comes."""

    def __init__(
        self, model: QuantizedModel, format_: str, progress_callback: Callable[[str, float], None] | None
    ) -> None:
        self.format = format_
        self._model = model
        self._progress = progress_callback
        self._owners: dict[str, str] = {}
        self._nbytes: dict[str, int] = {}
        self._sqnr_db: dict[str, float] = {}
        self._ready: dict[str, memoryview] = {}

    def tensors(self, name: str) -> list[TensorToWrite]:
        tensor = self._model[name]
        found = [TensorToWrite(name, tensor.shape, float_dtype(tensor))]
        if not why_float(tensor, self.format):
            rows, columns = tensor.shape
            stem = name.removesuffix(_LEAF)
            packed, scales = ((columns, (rows, 1)), (columns // 2, (rows,)))[self.format == W4A4]
            found = [
                TensorToWrite(name, (rows, packed), "int8"),
                TensorToWrite(f"{name}_scale", scales, "float32"),
                TensorToWrite(f"{stem}.comfy_quant", (len(marker(self.format, columns)),), "uint8"),
            ]
        self._owners |= {part.name: name for part in found}
        self._nbytes[name] = sum(part.nbytes for part in found)
        return found

    def content(self, written: str) -> memoryview:
        if written in self._ready:
            return self._ready.pop(written)
        name = self._owners[written]
        if self._progress is not None:
            self._progress(name, len(self._sqnr_db) / len(self._nbytes))
        tensor = self._model[name]
        if why_float(tensor, self.format):
            self._sqnr_db[name] = 0.0
            return bytes_back(self._model, name)
        error = RoundingError()
        group = rotation_group(tensor.columns)
        codes, scales = [], []
        for _, tile in tensor.tiles():
            values = rotated(tile.dequantize(), group) if group else tile.dequantize()
            if self.format == W4A4:
                plain, stored, scale = round_rows_to_int4(values)
            else:
                plain, scale = round_rows_to_int8(values)
                stored = plain
            error.add(values, plain * scale.reshape(-1, 1))  # the rotation keeps lengths
            codes.append(stored)
            scales.append(scale)
        self._sqnr_db[name] = error.sqnr_db
        self._ready[f"{name}_scale"] = np.concatenate(scales).reshape(-1).view(np.uint8).data
        self._ready[f"{name.removesuffix(_LEAF)}.comfy_quant"] = memoryview(marker(self.format, tensor.columns))
        return np.concatenate(codes).reshape(-1).view(np.uint8).data

    def report(self, name: str) -> TensorExport:
        tensor = self._model[name]
        kind, exact, sqnr_db, reason = float_dtype(tensor), True, None, why_float(tensor, self.format)
        if not reason:
            kind, exact, sqnr_db = self.format, False, self._sqnr_db[name]
            reason = "the format has one scale per row" + (", rotated" if rotation_group(tensor.columns) else "")
        elif not tensor.kept:
            exact = kind == "float32"
        return TensorExport(
            name, tensor.shape, tensor.stored_as, kind, self._nbytes[name], exact, sqnr_db, "" if exact else reason
        )


def why_float(tensor: LazyTensor, format_: str) -> str:
    """Say why a tensor stays float in a format; "" where it does not."""
    if tensor.kept:
        return "kept"
    if len(tensor.shape) != 2 or not tensor.name.endswith(_LEAF):
        return "the format is for the weights of linear layers"
    if format_ == W4A4 and tensor.columns % INT4_COLUMNS:
        return f"rows of {tensor.columns} are no multiple of {INT4_COLUMNS}"
    return ""


def marker(format_: str, columns: int) -> bytes:
    """Return the JSON that says how a weight of this many columns is stored."""
    group = rotation_group(columns)
    rotation = {"convrot": True, "convrot_groupsize": group} if group else {}
    if format_ == W4A4:
        rotation.pop("convrot")  # always rotated
    return json.dumps({"format": format_, **rotation}).encode()


def _remarks(format_: str) -> tuple[str, ...]:
    lines = ["tensor names are those of the source: ComfyUI expects the names of the model's original single file"]
    if format_ == W4A4:
        lines.append("activations are rounded to 4 bits by whoever runs convrot_w4a4")
    return tuple(lines)
