"""One safetensors file for ComfyUI: `int8_tensorwise` or `convrot_w4a4` weights beside the tensors that stay float.

A quantized matrix X.weight becomes

    X.weight         int8 [rows, columns], or for convrot_w4a4 two codes a byte, [rows, columns / 2]
    X.weight_scale   float32 [rows, 1], for convrot_w4a4 [rows]
    X.comfy_quant    uint8, JSON: {"format": ..., "convrot": true, "convrot_groupsize": 256}

Both formats have one scale per row, so every matrix is rounded again from its dequantized values.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.export.comfy_rounding import (
    INT4_COLUMNS,
    rotated,
    rotation_group,
    round_rows_to_int4,
    round_rows_to_int8,
)
from arrowquant_nb.export.parts import Parts
from arrowquant_nb.export.report import ExportReport, TensorExport
from arrowquant_nb.export.rounding_error import RoundingError
from arrowquant_nb.export.time_tables import tables_not_held
from arrowquant_nb.runs.dequantization import bytes_back, float_dtype
from arrowquant_nb.storage.joined_tiles import row_blocks
from arrowquant_nb.storage.safetensors_folder import TensorToWrite, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

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
    format_ = options.weight_type or INT8
    sqnr_db: dict[str, float] = {}

    def produce(name: str) -> dict[str, NDArray[Any] | memoryview]:
        if why_float(model[name], format_):
            return {name: bytes_back(model, name)}
        contents, sqnr_db[name] = _rounded(model[name], format_)
        return contents

    parts = Parts(lambda name: _plan(model[name], format_), produce, len(model), progress_callback)
    write_safetensors(path, [part for name in model for part in parts.tensors(name)], parts.content)
    exported = tuple(
        _exported(tensor, format_, parts.nbytes[name], sqnr_db.get(name)) for name, tensor in model.items()
    )
    total = sum(parts.nbytes.values())
    return ExportReport("comfy", path.name, total, exported, tables_not_held(model), _remarks(format_))


def _names(tensor: LazyTensor) -> tuple[str, str, str]:
    return tensor.name, f"{tensor.name}_scale", f"{tensor.name.removesuffix(_LEAF)}.comfy_quant"


def _plan(tensor: LazyTensor, format_: str) -> list[TensorToWrite]:
    if why_float(tensor, format_):
        return [TensorToWrite(tensor.name, tensor.shape, float_dtype(tensor))]
    rows, columns = tensor.shape
    weight, scale, quant = _names(tensor)
    packed, scales = (columns // 2, (rows,)) if format_ == W4A4 else (columns, (rows, 1))
    return [
        TensorToWrite(weight, (rows, packed), "int8"),
        TensorToWrite(scale, scales, "float32"),
        TensorToWrite(quant, (len(marker(format_, columns)),), "uint8"),
    ]


def _rounded(tensor: LazyTensor, format_: str) -> tuple[dict[str, NDArray[Any] | memoryview], float]:
    """Return what is written for a matrix, and the SQNR that is left of its values."""
    error = RoundingError()
    group = rotation_group(tensor.columns)
    codes, scales = [], []
    for block in row_blocks(tensor):
        values = rotated(block.dequantize(), group) if group else block.dequantize()
        if format_ == W4A4:
            plain, stored, scale = round_rows_to_int4(values)
        else:
            plain, scale = round_rows_to_int8(values)
            stored = plain
        error.add(values, plain * scale.reshape(-1, 1))  # the rotation keeps lengths
        codes.append(stored)
        scales.append(scale)
    weight, scale_name, quant = _names(tensor)
    contents: dict[str, NDArray[Any] | memoryview] = {
        weight: np.concatenate(codes),
        scale_name: np.concatenate(scales),
        quant: memoryview(marker(format_, tensor.columns)),
    }
    return contents, error.sqnr_db


def _exported(tensor: LazyTensor, format_: str, nbytes: int, sqnr_db: float | None) -> TensorExport:
    reason = why_float(tensor, format_)
    kind = float_dtype(tensor) if reason else format_
    exact = tensor.kept or (bool(reason) and kind == "float32")
    if not reason:
        reason = "the format has one scale per row" + (", rotated" if rotation_group(tensor.columns) else "")
    name, shape, stored_as = tensor.name, tensor.shape, tensor.stored_as
    return TensorExport(name, shape, stored_as, kind, nbytes, exact, sqnr_db, "" if exact else reason)


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
