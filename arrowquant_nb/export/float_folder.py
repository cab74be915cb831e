"""The floats again, in the dtype and layout of the source: loads wherever the source did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arrowquant_nb.export.report import ExportReport, TensorExport
from arrowquant_nb.export.time_tables import tables_not_held
from arrowquant_nb.runs.dequantization import float_dtype, write_float_folder
from arrowquant_nb.storage.safetensors_folder import TensorToWrite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from arrowquant_nb.export.options import ExportOptions
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["write_floats"]


def write_floats(
    model: QuantizedModel,
    folder: Path,
    options: ExportOptions,
    progress_callback: Callable[[str, float], None] | None = None,
) -> ExportReport:
    """Write an open model into an empty or new folder; one tensor is in memory at a time."""
    options.check_weight_type("safetensors", ())
    options.check_convolutions("safetensors")
    write_float_folder(model, folder, progress_callback)
    exported = []
    for name, tensor in model.items():
        dtype = float_dtype(tensor)
        reason = "" if tensor.kept or dtype == "float32" else "the dtype of the source"
        nbytes = TensorToWrite(name, tensor.shape, dtype).nbytes
        exported.append(TensorExport(name, tensor.shape, tensor.stored_as, dtype, nbytes, not reason, None, reason))
    total = sum(t.nbytes for t in exported)
    return ExportReport("safetensors", str(folder), total, tuple(exported), tables_not_held(model))
