"""Scale tensors that belong to a float8 weight, and marks of weights that are quantized already.

A float8 weight `P.weight` may come with one scale, named `P.scale_weight` (ComfyUI), `P.weight_scale`
(compressed-tensors, Model Optimizer) or `P.weight_scale_inv` (DeepSeek; despite its name it multiplies).
It is multiplied in and not listed on its own. Scales of activations (`input_scale`, `scale_input`)
say nothing about the weight: they stay ordinary tensors and are carried over. Any other tensor beside
a float8 weight that looks like quantization data is an error, for ignoring it could give wrong weights.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arrowquant_nb.errors import CheckpointError
from arrowquant_nb.storage.safetensors_file import FLOAT8, TensorEntry, quoted

BLOCK = 128  # rows and columns of one DeepSeek scale block
_WEIGHT_SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
_ACTIVATION_SCALES = ("input_scale", "scale_input", "activation_scale", "output_scale", "k_scale", "v_scale", "q_scale")
_SUSPECT = re.compile(r"weight_.*|(?:.*_)?(?:scales?|zeros?|zp|point|points|amax|absmax|quant|qparams)(?:_.*)?")
_MARKER = "scaled_fp8"
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool")
_QUANTIZED_LEAVES = re.compile(r"weight|qweight|weight_packed|packed|weight_q|in_proj_weight")
_QUANTIZED_MARKS = re.compile(r"comfy_quant|qzeros|SCB|quant_map|quant_state(?:\..*)?|bitsandbytes__\w+")
_FIX = "give the float checkpoint it was made from"


def refuse_quantized(entries: Mapping[str, TensorEntry], header_metadata: Mapping[str, str]) -> None:
    """Raise a CheckpointError when the weights are quantized integers (ComfyUI, GPTQ, bitsandbytes, ...)."""
    if "_quantization_metadata" in header_metadata and entries:
        first = next(iter(entries.values()))
        raise CheckpointError(f"{first.file}: its header says that it is quantized already; {_FIX}")
    for name, entry in entries.items():
        leaf = name.rpartition(".")[2]
        if _QUANTIZED_MARKS.fullmatch(leaf):
            raise CheckpointError(f"{entry.file}: {quoted(name)} marks a weight that is quantized already; {_FIX}")
        if entry.dtype in _INTEGERS and len(entry.shape) > 1 and _QUANTIZED_LEAVES.fullmatch(leaf):
            raise CheckpointError(f"{entry.file}: {quoted(name)} holds {entry.dtype} codes, not float weights; {_FIX}")


def attach_scales(entries: Mapping[str, TensorEntry]) -> tuple[dict[str, TensorEntry], dict[str, TensorEntry]]:
    """Give each float8 tensor the name of its scale and take the scales off the list.

    Returns
    -------
    listed, scales : dict
        Tensors that remain, in order, and the consumed scale tensors.

    Raises
    ------
    CheckpointError
        Two scales for one weight, a scale of the wrong dtype or shape, or an unrecognised companion.
    """
    leaves: dict[str, list[str]] = {}
    for name in entries:
        module, _, leaf = name.rpartition(".")
        leaves.setdefault(module, []).append(leaf)
    owners: dict[str, str] = {}
    for name, entry in entries.items():
        module, _, leaf = name.rpartition(".")
        if entry.dtype in FLOAT8 and leaf != _MARKER:
            scale = _scale_of(entry, module, leaf, leaves[module], entries)
            if scale is not None:
                owners[name] = scale
    scales = {name: entries[name] for name in owners.values()}
    listed = {
        name: replace(entry, scale=owners.get(name))
        for name, entry in entries.items()
        if name not in scales and name.rpartition(".")[2] != _MARKER
    }
    return listed, scales


def scale_rows(scale: NDArray[np.float32], entry: TensorEntry, row_start: int, row_count: int) -> NDArray[np.float32]:
    """Return the factors of some rows, shaped to multiply `[row_count, columns]`.

    Parameters
    ----------
    scale : float32 of the stored shape
        One value, `[O]`, `[O, 1]`, or one value for each block of 128 x 128.
    """
    if scale.size == 1:
        return scale.reshape(1, 1)
    if scale.size == entry.rows and scale.shape[0] == entry.rows:
        return scale.reshape(-1, 1)[row_start : row_start + row_count]
    blocks = scale[np.arange(row_start, row_start + row_count) // BLOCK]
    return np.repeat(blocks, BLOCK, axis=1)[:, : entry.columns]


def scale_values(raw: NDArray[np.uint8], scale: TensorEntry) -> NDArray[np.float32]:
    """Decode a scale tensor to float32 of its stored shape; NaN or infinity is a CheckpointError."""
    dtype = np.dtype(ml_dtypes.bfloat16) if scale.dtype == "bfloat16" else np.dtype(scale.dtype)
    values = raw.view(dtype.newbyteorder("<") if dtype.kind == "f" else dtype).astype(np.float32).reshape(scale.shape)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{scale.file}: the scale {quoted(scale.name)} holds NaN or infinity; download it again")
    return values


def _scale_of(
    entry: TensorEntry, module: str, leaf: str, siblings: list[str], entries: Mapping[str, TensorEntry]
) -> str | None:
    dot = "." if module else ""
    wanted = _WEIGHT_SCALES if leaf == "weight" else (f"{leaf}_scale", f"{leaf}_scale_inv", f"scale_{leaf}")
    found = [f"{module}{dot}{sibling}" for sibling in siblings if sibling in wanted]
    if len(found) > 1:
        raise CheckpointError(
            f"{entry.file}: {quoted(entry.name)} has two scales, {quoted(found[0])} and {quoted(found[1])}; keep one"
        )
    for sibling in siblings:
        known = sibling in wanted or sibling in _ACTIVATION_SCALES or sibling in (leaf, "weight", "bias", _MARKER)
        if leaf == "weight" and not known and _SUSPECT.fullmatch(sibling):
            raise CheckpointError(
                f"{entry.file}: {quoted(f'{module}{dot}{sibling}')} belongs to the float8 weight {quoted(entry.name)} "
                f"and its meaning is not known; known are {', '.join(_WEIGHT_SCALES)}. Give the float checkpoint"
            )
    if not found:
        return None
    _check_scale(entry, entries[found[0]])
    return found[0]


def _check_scale(entry: TensorEntry, scale: TensorEntry) -> None:
    if scale.dtype not in ("float32", "float16", "bfloat16"):
        raise CheckpointError(f"{scale.file}: the scale {quoted(scale.name)} is {scale.dtype}; float32 is expected")
    rows, columns = entry.rows, entry.columns
    blocks = (-(-rows // BLOCK), -(-columns // BLOCK))
    allowed = [(), (1,), (1, 1), (rows,), (rows, 1), blocks]
    if scale.shape not in allowed or scale.n_elements == 0 or (len(entry.shape) < 2 and scale.n_elements > 1):
        raise CheckpointError(
            f"{scale.file}: the scale {quoted(scale.name)} has shape {scale.shape}, which does not fit "
            f"{quoted(entry.name)} {entry.shape}; expected one value, one per row, or {blocks} blocks of {BLOCK}"
        )
