"""A folder in the compressed-tensors format, for text models that transformers or vLLM load.

The weight of a linear layer M becomes

    pack-quantized   M.weight_packed int32 [rows, words], M.weight_scale [rows, groups], M.weight_shape int64 [2] and,
                     unless all are in the centre, M.weight_zero_point int32 [words, groups], packed along the rows
    int-quantized    M.weight int8 [rows, columns] and M.weight_scale float32 [rows, 1]

and `quantization_config` in config.json names every layer. Codes of grid zero_point in whole groups are taken over as
they are: 32 bits hold them in the same order. A scheme as `llm-compressor` calls it may be asked for instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb._kernels.numpy_rows import pack_codes, unpack_codes
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.export.comfy_rounding import round_rows_to_int8
from arrowquant_nb.export.parts import Parts
from arrowquant_nb.export.report import ExportReport, TensorExport
from arrowquant_nb.export.rounding_error import RoundingError
from arrowquant_nb.export.time_tables import tables_not_held
from arrowquant_nb.quantizers.affine import quantize_array
from arrowquant_nb.runs.dequantization import bytes_back, float_dtype
from arrowquant_nb.runs.source_layout import write_source_layout
from arrowquant_nb.storage.joined_tiles import join_tiles, scale_dtype
from arrowquant_nb.storage.json_file import read_json_object
from arrowquant_nb.storage.safetensors_folder import TensorToWrite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from arrowquant_nb.export.options import ExportOptions
    from arrowquant_nb.quantizers.tensor import QuantizedTensor
    from arrowquant_nb.storage.lazy_tensor import LazyTensor
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["SCHEMES", "write_compressed_tensors"]

SCHEMES = ("W4A16", "W8A16", "W8A8")
"""Bits of weights and of activations; W8A8 rounds activations per token while it runs."""
CONFIG_NAME = "config.json"
GROUP = 128
"""Weights that share a scale where a matrix is rounded again; less where it does not divide the row."""
_LEAF = ".weight"


@dataclass(frozen=True)
class _Plan:
    """How one matrix is written."""

    bit_width: int
    group_size: int
    """0 = one scale per row, and activations of 8 bits."""
    symmetric: bool
    """Every zero point in the centre, and none stored."""
    scales: str
    """Dtype of the scales."""
    taken_over: bool
    """Whether the codes stay as they are."""
    reason: str
    """What is not exact about it; "" when nothing is."""


def write_compressed_tensors(
    model: QuantizedModel,
    folder: Path,
    options: ExportOptions,
    progress_callback: Callable[[str, float], None] | None = None,
) -> ExportReport:
    """Write an open text model into an empty or new folder; one tensor is in memory at a time.

    Parameters
    ----------
    model, folder, progress_callback : what, where, and who is told.
    options : as `weight_type` W4A16, W8A16 or W8A8; by default codes are taken over, else W8A16.

    Raises
    ------
    ConfigurationError
        Not a transformers model, or an unknown scheme.
    """
    options.check_weight_type("compressed-tensors", SCHEMES)
    options.check_convolutions("compressed-tensors")
    if model.facts.get("kind") != "transformers" or CONFIG_NAME not in model.facts.get("metadata_files", []):
        raise ConfigurationError(
            f"{model.path}: compressed-tensors is for text models that transformers loads; this one is a "
            f"{model.facts.get('kind')}: export to safetensors, diffusers, gguf or comfy"
        )
    stats = model.stats()
    roles = dict(zip(stats["layer_name"].to_pylist(), stats["role"].to_pylist(), strict=True))
    plans = {
        name: _plan(tensor, options.weight_type)
        for name, tensor in model.items()
        if not why_float(tensor, roles.get(name, ""))
    }
    sqnr_db: dict[str, float] = {}

    def produce(name: str) -> dict[str, NDArray[Any] | memoryview]:
        if name not in plans:
            return {name: bytes_back(model, name)}
        contents, sqnr_db[name] = _contents(model[name], plans[name])
        return contents

    def plan(name: str) -> list[TensorToWrite]:
        tensor = model[name]
        if name not in plans:
            return [TensorToWrite(name, tensor.shape, float_dtype(tensor))]
        return _tensors(tensor, plans[name])

    parts = Parts(plan, produce, len(model), progress_callback)
    config = {**read_json_object(model.file_path(CONFIG_NAME)), "quantization_config": _config(plans)}
    replaced = {CONFIG_NAME: (json.dumps(config, indent=2) + "\n").encode()}
    write_source_layout(model, folder, parts.tensors, parts.content, replaced)
    exported = tuple(
        _exported(tensor, plans.get(name), parts.nbytes[name], sqnr_db.get(name), roles.get(name, ""))
        for name, tensor in model.items()
    )
    total = sum(parts.nbytes.values())
    return ExportReport(
        "compressed-tensors", folder.name, total, exported, tables_not_held(model), _remarks(plans.values())
    )


def why_float(tensor: LazyTensor, role: str) -> str:
    """Say why a tensor stays float; "" where it does not."""
    if tensor.kept:
        return "kept"
    if len(tensor.shape) != 2 or not tensor.name.endswith(_LEAF) or role == "vocabulary":
        return "the format is for linear layers inside the model"
    return ""


def _plan(tensor: LazyTensor, scheme: str | None) -> _Plan:
    """Take codes over where the format decodes them alike, else round."""
    transformed = tensor.rotation_seed is not None or tensor.low_rank or "equalization" in tensor.references[0].ranges
    same = tensor.grid == "zero_point" and not transformed and tensor.columns % tensor.group_size == 0
    if scheme == "W8A8":
        return _Plan(8, 0, True, "float32", False, "the scheme W8A8 has one scale per row")
    if same and (scheme is None or f"W{tensor.bit_width}A16" == scheme):
        centred = all(_centred(tile) for _, tile in tensor.tiles())
        scales = scale_dtype(tensor).name
        reason = "codes taken over, but readers multiply in the float16 of the scales" if scales == "float16" else ""
        return _Plan(tensor.bit_width, tensor.group_size, centred, scales, True, reason)
    group = next(size for size in (GROUP, 64, 32, 16, 1) if tensor.columns % size == 0)
    if group == 1:
        return _Plan(8, 0, True, "float32", False, f"rows of {tensor.columns} are no whole groups: one scale per row")
    bits = 4 if scheme == "W4A16" and tensor.bit_width <= 4 else 8
    if same:
        reason = f"the scheme {scheme} was asked for"
    elif transformed:
        reason = "the format cannot hold rotation, low-rank branch or column scales"
    elif tensor.grid != "zero_point":
        reason = f"the format has no grid {tensor.grid}"
    else:
        reason = f"groups of {tensor.group_size} do not divide rows of {tensor.columns}"
    return _Plan(bits, group, False, "float32", False, reason)


def _zeros(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    return unpack_codes(tensor.zero_points.view(np.uint8), tensor.bit_width, tensor.layout.n_groups)


def _centred(tensor: QuantizedTensor) -> bool:
    return bool((_zeros(tensor) == 1 << (tensor.bit_width - 1)).all())


def _words(nbits: int) -> int:
    return -(-nbits // 32)


def _tensors(tensor: LazyTensor, plan: _Plan) -> list[TensorToWrite]:
    rows, columns = tensor.shape
    if not plan.group_size:
        return [
            TensorToWrite(tensor.name, (rows, columns), "int8"),
            TensorToWrite(f"{tensor.name}_scale", (rows, 1), "float32"),
        ]
    groups = columns // plan.group_size
    found = [
        TensorToWrite(f"{tensor.name}_packed", (rows, _words(columns * plan.bit_width)), "int32"),
        TensorToWrite(f"{tensor.name}_scale", (rows, groups), plan.scales),
        TensorToWrite(f"{tensor.name}_shape", (2,), "int64"),
    ]
    if not plan.symmetric:
        found.append(TensorToWrite(f"{tensor.name}_zero_point", (_words(rows * plan.bit_width), groups), "int32"))
    return found


def _contents(tensor: LazyTensor, plan: _Plan) -> tuple[dict[str, NDArray[Any] | memoryview], float]:
    """Return what is written for a matrix, and the SQNR that is left of its values."""
    whole = join_tiles(tensor)
    error = RoundingError()
    name = tensor.name
    if not plan.group_size:
        values = whole.dequantize()
        codes, scales = round_rows_to_int8(values)
        error.add(values, codes * scales)
        return {name: codes, f"{name}_scale": scales}, error.sqnr_db
    if not plan.taken_over:
        values = whole.dequantize()
        whole = quantize_array(
            values, bit_width=plan.bit_width, group_size=plan.group_size, method="mse", scale_format="float16",
            gain_correction=False, importance=None,
        )  # fmt: skip
        whole = replace(whole, scales=whole.scales.astype(np.float32))
        error.add(values, whole.dequantize())
    else:
        error.add(whole.dequantize(), whole.dequantize(plan.scales).astype(np.float32))
    contents: dict[str, NDArray[Any] | memoryview] = {
        f"{name}_packed": _as_words(whole.packed),
        f"{name}_scale": whole.scales,
        f"{name}_shape": np.array(tensor.shape, np.int64),
    }
    if not plan.symmetric:
        turned = pack_codes(np.ascontiguousarray(_zeros(whole).T), plan.bit_width)
        contents[f"{name}_zero_point"] = _as_words(turned).T
    return contents, error.sqnr_db


def _as_words(packed: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return bytes (rows, n) as little-endian words, padded with zero codes."""
    padded = np.zeros((len(packed), 4 * _words(8 * packed.shape[1])), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view("<i4")


def _config(plans: dict[str, _Plan]) -> dict[str, Any]:
    kinds: dict[tuple[int, int, bool], list[str]] = {}
    for name, plan in plans.items():
        kinds.setdefault((plan.bit_width, plan.group_size, plan.symmetric), []).append(name.removesuffix(_LEAF))
    groups = {f"group_{i}": _group(*kind, layers) for i, (kind, layers) in enumerate(kinds.items())}
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "ignore": [],
        "kv_cache_scheme": None,
        "config_groups": groups,
        # transformers 5 with compressed-tensors 0.20 makes room for unpacked zero points and then refuses packed ones,
        # except where it makes floats while it loads.
        **({"dequantize": True} if any(not symmetric for _, _, symmetric in kinds) else {}),
    }


def _group(bit_width: int, group_size: int, symmetric: bool, layers: list[str]) -> dict[str, Any]:
    weights: dict[str, Any] = {"num_bits": bit_width, "type": "int", "symmetric": symmetric, "dynamic": False}
    activations: dict[str, Any] | None = None
    if group_size:
        weights |= {"strategy": "group", "group_size": group_size}
    else:
        weights |= {"strategy": "channel", "group_size": None}
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    return {
        "targets": layers,
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
        "format": "pack-quantized" if group_size else "int-quantized",
    }


def _exported(tensor: LazyTensor, plan: _Plan | None, nbytes: int, sqnr_db: float | None, role: str) -> TensorExport:
    name, shape, stored_as = tensor.name, tensor.shape, tensor.stored_as
    if plan is None:
        dtype = float_dtype(tensor)
        exact = tensor.kept or dtype == "float32"
        return TensorExport(
            name, shape, stored_as, dtype, nbytes, exact, None, "" if exact else why_float(tensor, role)
        )
    kind = f"W{plan.bit_width}A16" if plan.group_size else "W8A8"
    exact = not plan.reason
    return TensorExport(name, shape, stored_as, kind, nbytes, exact, None if exact else sqnr_db, plan.reason)


def _remarks(plans: Any) -> tuple[str, ...]:
    lines = ["loading in transformers needs the compressed-tensors package; weights are float again when it runs there"]
    if any(plan.bit_width == 2 for plan in plans):
        lines.append(
            "2-bit weights load in transformers; other readers of the format may have kernels for 4 and 8 only"
        )
    return tuple(lines)
