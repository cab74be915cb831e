"""One GGUF file from an open model, tensor by tensor, through the `gguf` package's own writer.

Names are the source's (diffusers loads those; ComfyUI-GGUF wants those of the original single file). Every tensor that
is not exact is decoded again by the package and compared with what dequantizing gives.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.errors import ConfigurationError, OutputError, QuantizationError
from arrowquant_nb.export.gguf_blocks import BLOCK_BITS, blocks_of_codes, blocks_of_values
from arrowquant_nb.export.gguf_types import GgufTensor, gguf_tensor
from arrowquant_nb.export.report import ExportReport, TensorExport
from arrowquant_nb.export.rounding_error import RoundingError
from arrowquant_nb.export.time_tables import tables_not_held
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.joined_tiles import row_blocks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from arrowquant_nb.export.options import ExportOptions
    from arrowquant_nb.storage.lazy_tensor import LazyTensor
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["write_gguf"]

LONGEST_NAME = 127
"""Bytes of a tensor name that ComfyUI-GGUF and stable-diffusion.cpp read; llama.cpp itself reads 63."""
LLAMA_NAME = 63
# `general.architecture` as ComfyUI-GGUF and llama.cpp call them, by the start of the class name.
ARCHITECTURES = {
    "Flux": "flux", "SD3": "sd3", "AuraFlow": "aura", "HiDream": "hidream", "Cosmos": "cosmos", "LTX": "ltxv",
    "HunyuanVideo": "hyvid", "Wan": "wan", "Lumina2": "lumina2", "QwenImage": "qwen_image", "PixArt": "pixart",
    "Bert": "bert", "LLaDAMoE": "llada-moe", "LLaDA": "llada", "Dream": "dream", "RND1": "rnd1",
}  # fmt: skip
# `general.file_type`, the llama.cpp number of the most frequent block type.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q2_K": 10, "Q4_K": 14, "Q6_K": 18, "BF16": 32}


def load_gguf() -> Any:
    """Import the `gguf` package; ConfigurationError says how to install it."""
    try:
        import gguf  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigurationError("writing GGUF needs the gguf package: pip install 'arrowquant_nb[export]'") from error
    return gguf


def architecture(class_name: str | None) -> str:
    """Return `general.architecture` of a model class: the known name, else the class's own in small letters.

    >>> architecture("FluxTransformer2DModel"), architecture("DiTTransformer2DModel")
    ('flux', 'dittransformer2dmodel')
    """
    name = class_name or ""
    for start, found in ARCHITECTURES.items():
        if name.startswith(start):
            return found
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def write_gguf(
    model: QuantizedModel,
    path: Path,
    options: ExportOptions,
    progress_callback: Callable[[str, float], None] | None = None,
) -> ExportReport:
    """Write an open model to a new file; one tensor is in memory at a time.

    Parameters
    ----------
    model, path, progress_callback : what, where, and who is told.
    options : a block type as `weight_type`, and `convolutions`; see `gguf_types.gguf_tensor`.

    Raises
    ------
    ConfigurationError
        No `gguf` package, or an unknown weight type.
    OutputError
        A tensor name that readers cannot take.
    """
    gguf = load_gguf()
    options.check_weight_type("gguf", tuple(BLOCK_BITS))
    planned = {name: gguf_tensor(model[name], options.weight_type, options.convolutions) for name in model}
    plans = {name: plan for name, plan in planned.items() if plan is not None}
    _check_names(plans)
    writer = gguf.GGUFWriter(path, architecture(model.facts.get("class_name")))
    try:
        _add_metadata(writer, model, plans)
        for plan in plans.values():
            kind = gguf.GGMLQuantizationType[plan.kind]
            shape = plan.shape if plan.source == "floats" else (plan.shape[0], plan.nbytes // plan.shape[0])
            dtype = np.dtype(np.uint8) if plan.source != "floats" else np.dtype(np.float32)
            writer.add_tensor_info(plan.name, shape, dtype, plan.nbytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        exported = []
        for done, (name, plan) in enumerate(plans.items()):
            if progress_callback is not None:
                progress_callback(name, done / len(plans))
            data, sqnr_db = _data(model[name], plan, gguf)
            writer.write_tensor_data(data)
            exported.append(_exported(model[name], plan, sqnr_db))
    finally:
        writer.close()
    total = sum(tensor.nbytes for tensor in exported)
    dropped = tuple(
        f"{name!r} ({model[name].dtype} {list(model[name].shape)}) has no GGUF type and is left out"
        for name, plan in planned.items()
        if plan is None
    )
    not_held = (*tables_not_held(model), *dropped)
    return ExportReport("gguf", path.name, total, tuple(exported), not_held, _remarks(model, plans))


def _check_names(plans: dict[str, GgufTensor]) -> None:
    for name in plans:
        if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
            raise OutputError(
                f"the tensor name {name[:200]!r} is longer than the {LONGEST_NAME} bytes that readers of GGUF take"
            )


def _add_metadata(writer: Any, model: QuantizedModel, plans: dict[str, GgufTensor]) -> None:
    kinds = [plan.kind for plan in plans.values() if plan.source != "floats"] or [p.kind for p in plans.values()]
    writer.add_name(str(model.facts.get("name") or "model"))
    writer.add_quantization_version(2)
    writer.add_file_type(FILE_TYPES.get(max(set(kinds), key=kinds.count), 0))
    writer.add_string("arrowquant.modality", model.modality)
    writer.add_string("arrowquant.class_name", str(model.facts.get("class_name") or ""))
    for plan in plans.values():
        if plan.original_shape:
            writer.add_array(f"comfy.gguf.orig_shape.{plan.name}", [int(n) for n in plan.original_shape])


def _data(tensor: LazyTensor, plan: GgufTensor, gguf: Any) -> tuple[NDArray[Any], float | None]:
    """Return the bytes of a tensor, and where it is not exact the SQNR of what a reader decodes, in dB."""
    if tensor.kept:
        return _raw(tensor.dequantize().astype(numpy_dtype(plan.dtype))), None
    error = RoundingError()
    parts: list[NDArray[Any]] = []
    for block in row_blocks(tensor):
        if plan.source == "codes":
            part: NDArray[Any] = blocks_of_codes(block, plan.kind)
        elif plan.source == "values":
            part = blocks_of_values(block.dequantize(), plan.kind)
        else:
            part = block.dequantize(plan.dtype)
        if not plan.exact:
            decoded = part.astype(np.float32) if plan.source == "floats" else _decoded(part, plan, gguf)
            error.add(block.dequantize(), decoded)
        parts.append(part)
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return _raw(whole), None if plan.exact else error.sqnr_db


def _raw(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of an array: the writer's own dtypes leave bfloat16 out."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _decoded(blocks: NDArray[np.uint8], plan: GgufTensor, gguf: Any) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        values: NDArray[np.float32] = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[plan.kind])
    if not np.isfinite(values).all():
        raise QuantizationError(
            f"{plan.name}: {plan.kind} cannot hold values of this size, its float16 scale overflows: keep this layer "
            f"(layer_bit_widths {{{plan.name!r}: 16}}), or export to safetensors or diffusers"
        )
    return values


def _exported(tensor: LazyTensor, plan: GgufTensor, sqnr_db: float | None) -> TensorExport:
    if sqnr_db is not None and math.isinf(sqnr_db):
        return TensorExport(tensor.name, tensor.shape, tensor.stored_as, plan.kind, plan.nbytes, exact=True)
    return TensorExport(
        tensor.name, tensor.shape, tensor.stored_as, plan.kind, plan.nbytes, plan.exact, sqnr_db, plan.reason
    )


def _remarks(model: QuantizedModel, plans: dict[str, GgufTensor]) -> tuple[str, ...]:
    lines = []
    if model.facts.get("kind", "").startswith("diffusers"):
        lines.append(
            "load with from_single_file(FILE, config=FOLDER of config.json, quantization_config="
            "GGUFQuantizationConfig(...)), for classes that have it"
        )
    longest = max(plans, key=lambda name: len(name.encode("utf-8", "surrogatepass")), default="")
    if len(longest.encode("utf-8", "surrogatepass")) > LLAMA_NAME:
        lines.append(f"llama.cpp reads names of at most {LLAMA_NAME} bytes; {longest!r} is longer")
    moved = [plan.name for plan in plans.values() if plan.original_shape is not None]
    if moved:
        lines.append(f"{len(moved)} tensors (such as {moved[0]}) have their shape in comfy.gguf.orig_shape.NAME")
    integers = [plan.name for plan in plans.values() if plan.kind.startswith("I")]
    if integers:
        lines.append(f"diffusers refuses integer tensors in GGUF; there are {len(integers)}, such as {integers[0]}")
    return tuple(lines)
