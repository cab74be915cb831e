"""Folding equalization into the weights before a layer, so that dividing its input costs nothing at run time.

A small table per architecture says which tensors make the input of which layers; what it does not list is left to be
stored. What happens to a tensor is said from names and shapes alone (`plan_folding`), so that a large model can be
folded tensor by tensor; the float model computes what it did before.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.errors import ShapeMismatchError
from arrowquant_nb.quantizers.folded_tensor import FoldedTensor
from arrowquant_nb.quantizers.scaled_columns import checked_scales

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Weights = Mapping[str, NDArray[np.float32]]
    Shapes = Mapping[str, tuple[int, ...]]
    Scales = Mapping[str, NDArray[np.float32]]

__all__ = [
    "FoldablePlace", "Folding", "FoldingPlan", "Producer", "fold_equalization", "foldable_places", "plan_folding",
    "shared_inputs",
]  # fmt: skip


@dataclass(frozen=True)
class Producer:
    """What makes the input of some layers; names are those of modules, `{}` stands for the block's prefix."""

    kind: str
    """rows: the input is proportional to the producer's outputs, a linear layer's or an affine norm's, and nothing but
    the consumers reads them. modulation: it is norm(x) (1 + scale) + shift, both parts of the producer's outputs."""
    producer: str
    consumers: tuple[str, ...]
    """Every layer that reads this input: they must share their scales."""
    shift: int = 0
    """modulation: which of the `parts` equal parts of the producer's outputs is the shift."""
    scale: int = 1
    """Likewise the scale."""
    parts: int = 2
    """Likewise."""


ATTENTION = ("{}.attn1.to_q", "{}.attn1.to_k", "{}.attn1.to_v")
# Architecture -> (pattern of a block's prefix, what makes inputs in it). Sources: the forward passes of diffusers'
# DiTTransformer2DModel (BasicTransformerBlock with ada_norm_zero), of transformers' BertForMaskedLM and of Dream, which
# computes what Qwen2 does. Values mix tokens, not channels, so they fold into the output projection, unless heads share
# them (Qwen2). What stands behind a GELU, and BERT's norms, which feed the residual too, cannot be folded.
ARCHITECTURES: dict[str, tuple[tuple[str, tuple[Producer, ...]], ...]] = {
    "DiTTransformer2DModel": (
        (
            r"transformer_blocks\.\d+",
            (
                Producer("modulation", "{}.norm1.linear", ATTENTION, 0, 1, 6),
                Producer("rows", "{}.attn1.to_v", ("{}.attn1.to_out.0",)),
                Producer("modulation", "{}.norm1.linear", ("{}.ff.net.0.proj",), 3, 4, 6),
            ),
        ),
        (r"", (Producer("modulation", "proj_out_1", ("proj_out_2",), 0, 1, 2),)),
    ),
    "BertForMaskedLM": (
        (
            r"bert\.encoder\.layer\.\d+",
            (Producer("rows", "{}.attention.self.value", ("{}.attention.output.dense",)),),
        ),
    ),
    "DreamModel": (
        (
            r"model\.layers\.\d+",
            (
                Producer(
                    "rows",
                    "{}.input_layernorm",
                    ("{}.self_attn.q_proj", "{}.self_attn.k_proj", "{}.self_attn.v_proj"),
                ),
                Producer("rows", "{}.post_attention_layernorm", ("{}.mlp.gate_proj", "{}.mlp.up_proj")),
                Producer("rows", "{}.mlp.up_proj", ("{}.mlp.down_proj",)),
            ),
        ),
    ),
}
# Layers that read one input though nothing can be folded there: they still must share their scales.
UNFOLDABLE: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "BertForMaskedLM": (
        (
            r"bert\.encoder\.layer\.\d+",
            ("{}.attention.self.query", "{}.attention.self.key", "{}.attention.self.value"),
        ),
    ),
}


@dataclass(frozen=True)
class FoldablePlace:
    """One place of a model where equalization can be folded."""

    consumers: tuple[str, ...]
    """Weights that read the input: their columns are multiplied."""
    producers: tuple[str, ...]
    """Tensors that make it: their outputs are divided."""
    missing: tuple[str, ...]
    """Of these, the biases that the model does not have and would need."""


@dataclass(frozen=True, eq=False)
class FoldingPlan:
    """What folding does to each tensor, and what is left to store."""

    tensors: dict[str, FoldedTensor]
    """The tensors that change, by name: producers, and consumers with multiplied columns."""
    folded: tuple[str, ...]
    """Layers whose input now comes divided."""
    stored: tuple[str, ...]
    """Layers whose scales must be stored beside their codes and applied to their input at run time."""


@dataclass(frozen=True, eq=False)
class Folding:
    """Weights with equalization in them, and what is left to store."""

    weights: dict[str, NDArray[np.float32]]
    """The tensors that changed, by name: producers, and consumers with multiplied columns."""
    folded: tuple[str, ...]
    """Layers whose input now comes divided."""
    stored: tuple[str, ...]
    """Layers whose scales must be stored beside their codes and applied to their input at run time."""


def fold_equalization(weights: Weights, scales: Scales, architecture: str) -> Folding:
    """Divide what makes each layer's input, and multiply the layer's columns, where the architecture allows.

    Parameters
    ----------
    weights
        The model's tensors by checkpoint name.
    scales
        Weight name -> float32 (columns,), what its input is to be divided by. Layers with one input must have equal
        scales to be folded.
    architecture
        Class name of the model; unknown ones fold nothing.

    Raises
    ------
    ShapeMismatchError
        Scales that do not fit their layer, or name none.

    """
    plan = plan_folding({name: array.shape for name, array in weights.items()}, scales, architecture)
    changed: dict[str, NDArray[np.float32]] = {}
    for name, tensor in plan.tensors.items():
        before = weights[name] if name in weights else np.zeros(len(tensor.divisors[0][0]), np.float32)
        changed[name] = tensor.whole(before)
    return Folding(changed, plan.folded, plan.stored)


def plan_folding(shapes: Shapes, scales: Scales, architecture: str) -> FoldingPlan:
    """Say what folding does to every tensor; see `fold_equalization`.

    A bias that a modulation needs and does not have counts as zeros, so `tensors` may hold a name that `shapes` lacks.
    """
    for name, values in scales.items():
        if name not in shapes:
            raise ShapeMismatchError(f"{name}: there are equalization scales for it, but no such weight")
        checked_scales(values, _columns(shapes[name]), name)
    divisors: dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]] = {}
    folded: list[str] = []
    for prefix, producer in _producers(shapes, architecture):
        consumers = [f"{c.format(prefix)}.weight" for c in producer.consumers]
        shared = _shared_scales(consumers, scales)
        if shared is None:
            continue
        for name, division in _divisions(producer, producer.producer.format(prefix), shapes, shared).items():
            divisors.setdefault(name, []).append(division)
        folded += consumers
    tensors = {
        name: FoldedTensor(tuple(divisors.get(name, ())), scales[name].astype(np.float32) if name in folded else None)
        for name in dict.fromkeys((*divisors, *folded))
    }
    return FoldingPlan(tensors, tuple(folded), tuple(name for name in scales if name not in folded))


def foldable_places(names: Iterable[str], architecture: str) -> list[FoldablePlace]:
    """Return where a model's equalization can be folded, as far as its architecture is known."""
    known = dict.fromkeys(names)
    found = []
    for prefix, producer in _producers(known, architecture):
        source = producer.producer.format(prefix)
        bias = f"{source}.bias"
        needed = producer.kind == "modulation" and bias not in known
        found.append(
            FoldablePlace(
                tuple(f"{c.format(prefix)}.weight" for c in producer.consumers),
                (f"{source}.weight", *([bias] if bias in known else [])),
                (bias,) if needed else (),
            )
        )
    return found


def shared_inputs(names: Iterable[str], architecture: str) -> list[tuple[str, ...]]:
    """Return the groups of weight names that read one input, as far as the architecture is known."""
    known = dict.fromkeys(names)
    found = [place.consumers for place in foldable_places(known, architecture)]
    for pattern, consumers in UNFOLDABLE.get(architecture, ()):
        found += [
            tuple(f"{c.format(prefix)}.weight" for c in consumers) for prefix in _prefixes(known, pattern, consumers)
        ]
    return [group for group in found if len(group) > 1]


def _columns(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _producers(names: Mapping[str, object], architecture: str) -> list[tuple[str, Producer]]:
    """Every place of the architecture's table that this model has, all its tensors there."""
    return [
        (prefix, producer)
        for pattern, producers in ARCHITECTURES.get(architecture, ())
        for producer in producers
        for prefix in _prefixes(names, pattern, (producer.producer, *producer.consumers))
    ]


def _prefixes(names: Mapping[str, object], pattern: str, modules: Sequence[str]) -> list[str]:
    first = re.compile(re.escape(f"{modules[0]}.weight").replace(r"\{\}", f"({pattern})"))
    matches = (first.fullmatch(name) for name in names)
    prefixes = [m.group(1) if m.groups() else "" for m in matches if m is not None]
    return [p for p in prefixes if all(f"{module.format(p)}.weight" in names for module in modules)]


def _shared_scales(consumers: Sequence[str], scales: Scales) -> NDArray[np.float32] | None:
    """Scales that all consumers have in common, None when one lacks them or differs."""
    if any(name not in scales for name in consumers):
        return None
    first = scales[consumers[0]].astype(np.float32)
    return first if all(np.array_equal(first, scales[name]) for name in consumers) else None


def _divisions(
    producer: Producer, source: str, shapes: Shapes, scales: NDArray[np.float32]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
    """Return how the producer's tensors change, so that its output comes divided by `scales`."""
    weight, bias = f"{source}.weight", f"{source}.bias"
    rows = producer.parts * len(scales) if producer.kind == "modulation" else len(scales)
    outputs = [shapes[name][0] for name in (weight, bias) if name in shapes]
    if any(n != rows for n in outputs):
        raise ShapeMismatchError(f"{source}: {outputs[0]} outputs; folding {len(scales)} scales into it needs {rows}")
    if producer.kind == "rows":
        return {name: (scales, None) for name in (weight, bias) if name in shapes}
    divisors, offset = _modulation(producer, scales)
    return {weight: (divisors, None), bias: (divisors, offset)}


def _modulation(producer: Producer, scales: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Divisor of every output, and what its bias gets first: 1 + scale must come out as (1 + scale) / s."""
    width = len(scales)
    divisors, offset = np.ones(producer.parts * width, np.float32), np.zeros(producer.parts * width, np.float32)
    divisors[producer.shift * width : (producer.shift + 1) * width] = scales
    part = slice(producer.scale * width, (producer.scale + 1) * width)
    divisors[part], offset[part] = scales, 1 - scales
    return divisors, offset
