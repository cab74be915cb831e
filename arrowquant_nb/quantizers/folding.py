"""Folding equalization into the weights before a layer, so that dividing its input costs nothing at run time.

`folding_table.py` says which tensors make the input of which layers; what it does not list is left to be stored.
What happens to a tensor is said from names and shapes alone (`plan_folding`), so that a large model can be folded
tensor by tensor; the float model computes what it did before.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.errors import ShapeMismatchError
from arrowquant_nb.quantizers.folded_tensor import FoldedTensor
from arrowquant_nb.quantizers.folding_table import ARCHITECTURES
from arrowquant_nb.quantizers.input_sources import Modulation
from arrowquant_nb.quantizers.scaled_columns import checked_scales

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.input_sources import Division, Place, Source

    Weights = Mapping[str, NDArray[np.float32]]
    Shapes = Mapping[str, tuple[int, ...]]
    Scales = Mapping[str, NDArray[np.float32]]

__all__ = ["FoldablePlace", "Folding", "FoldingPlan", "fold_equalization", "foldable_places", "plan_folding"]


@dataclass(frozen=True)
class FoldablePlace:
    """One place of a model where equalization can be folded."""

    readers: tuple[tuple[str, ...], ...]
    """Weights whose columns are multiplied, those that read one input together."""
    producers: tuple[str, ...]
    """Tensors that make the inputs: their outputs are divided."""
    missing: tuple[str, ...]
    """Of these, the biases that the model does not have and would need."""

    @property
    def consumers(self) -> tuple[str, ...]:
        """All readers; they must share their scales."""
        return tuple(name for names in self.readers for name in names)


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
        Class name of the model; unknown ones fold nothing. Of blocks that can be built to read something else under
        the same names (`only_cross_attention` of a U-Net) the usual form is meant; a run looks at what was captured.

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
    divisors: dict[str, list[Division]] = {}
    folded: list[str] = []
    for prefix, place in _places(shapes, architecture):
        found = _foldable(prefix, place, shapes)
        shared = _shared_scales(found.consumers, scales)
        if shared is None:
            continue
        for source in place.sources:
            for name, division in _divisions(source, source.module.format(prefix), shapes, shared).items():
                divisors.setdefault(name, []).append(division)
        folded += found.consumers
    tensors = {
        name: FoldedTensor(tuple(divisors.get(name, ())), scales[name].astype(np.float32) if name in folded else None)
        for name in dict.fromkeys((*divisors, *folded))
    }
    return FoldingPlan(tensors, tuple(folded), tuple(name for name in scales if name not in folded))


def foldable_places(names: Iterable[str], architecture: str) -> list[FoldablePlace]:
    """Return where a model's equalization can be folded, as far as its architecture is known."""
    known = dict.fromkeys(names)
    return [_foldable(prefix, place, known) for prefix, place in _places(known, architecture)]


def _foldable(prefix: str, place: Place, names: Mapping[str, object]) -> FoldablePlace:
    producers, missing = [], []
    for source in place.sources:
        module = source.module.format(prefix)
        producers += [name for name in (f"{module}.weight", f"{module}.bias") if name in names]
        if isinstance(source, Modulation) and f"{module}.bias" not in names:
            missing.append(f"{module}.bias")
    readers = tuple(tuple(f"{name.format(prefix)}.weight" for name in layers) for layers in place.readers)
    return FoldablePlace(readers, tuple(producers), tuple(missing))


def _columns(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _places(names: Mapping[str, object], architecture: str) -> list[tuple[str, Place]]:
    """Every place of the architecture's table that this model has, all its tensors there."""
    return [
        (prefix, place)
        for pattern, places in ARCHITECTURES.get(architecture, ())
        for place in places
        for prefix in _prefixes(names, pattern, place)
    ]


def _prefixes(names: Mapping[str, object], pattern: str, place: Place) -> list[str]:
    first = re.compile(re.escape(f"{place.modules[0]}.weight").replace(r"\{\}", f"({pattern})"))
    matches = (first.fullmatch(name) for name in names)
    prefixes = [m.group(1) if m.groups() else "" for m in matches if m is not None]
    return [p for p in prefixes if _has(names, p, place)]


def _has(names: Mapping[str, object], prefix: str, place: Place) -> bool:
    """Tell whether a block has all modules of a place and is of its variant."""

    def there(module: str) -> bool:
        return f"{module.format(prefix)}.weight" in names

    wanted = (*place.modules, place.beside) if place.beside else place.modules
    return all(there(module) for module in wanted) and not (place.without and there(place.without))


def _shared_scales(consumers: Sequence[str], scales: Scales) -> NDArray[np.float32] | None:
    """Scales that all consumers have in common, None when one lacks them or differs."""
    if any(name not in scales for name in consumers):
        return None
    first = scales[consumers[0]].astype(np.float32)
    return first if all(np.array_equal(first, scales[name]) for name in consumers) else None


def _divisions(source: Source, module: str, shapes: Shapes, scales: NDArray[np.float32]) -> dict[str, Division]:
    """Return how the tensors of a source change, so that what it makes comes divided by `scales`."""
    weight, bias = f"{module}.weight", f"{module}.bias"
    outputs = shapes[weight][0]
    if not source.fits(len(scales), outputs) or shapes.get(bias, (outputs,))[0] != outputs:
        found = ", ".join(f"{name} of shape {shapes[name]}" for name in (weight, bias) if name in shapes)
        raise ShapeMismatchError(f"{module}: {len(scales)} equalization scales cannot be folded into {found}")
    of_weight, of_bias = source.divisions(scales, outputs)
    needs_bias = bias in shapes or isinstance(source, Modulation)
    return {weight: of_weight, **({bias: of_bias} if needs_bias else {})}
