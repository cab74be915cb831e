"""How far other weights move a bundled model's output: a few network calls of its own trajectories, judged together.

Teacher-forced: every call gets the float model's own input, so errors of different layers add up without piling up.
Of a language model the output counts at masked characters only, which are all it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from .runnable import Sample, Split, Step


@dataclass(frozen=True, eq=False)
class Probe:
    """Network calls of a float model and what it said."""

    model: Sample
    """The float model."""
    steps: tuple[Step, ...]
    """The calls."""
    outputs: tuple[NDArray[np.float64], ...]
    """What counts of its output at each of them."""
    n: int
    """Trajectories."""
    seed: int
    """Of their starting noise, or of the text."""
    shares: tuple[float, ...]
    """How many steps of the trajectories each call stands for."""

    @classmethod
    def of(cls, model: Sample, n: int, seed: int, n_steps: int, split: Split) -> Probe:
        """Follow `n` trajectories of a float model and keep `n_steps` of their calls: the last one, the others spread.

        The last step stands for itself alone: where little noise is left to remove, the same error of the weights costs
        many decibels more than one step before.
        """
        steps = tuple(model.trajectories(n, seed, split))
        before, count = steps[:-1], min(n_steps, len(steps)) - 1
        chosen = (*(before[int((i + 0.5) * len(before) / count)] for i in range(count)), steps[-1])
        shares = (*([len(before) / count] * count if count else []), 1.0)
        return cls(model, chosen, tuple(_judged(step, model.forward(step)) for step in chosen), n, seed, shares)

    def noise(self, weights: Mapping[str, NDArray[np.float32]]) -> float:
        """Return the error energy over the signal energy of the network's output when these weights stand in.

        Parameters
        ----------
        weights
            float32 by checkpoint name; the others stay the float model's.

        """
        fields: dict[str, Any] = {"weights": MappingProxyType({**self.model.weights, **weights})}
        other: Sample = replace(self.model, **fields)  # type: ignore[type-var]
        power = error = 0.0
        for step, expected, share in zip(self.steps, self.outputs, self.shares, strict=True):
            power += share * float(np.sum(expected**2))
            error += share * float(np.sum((_judged(step, other.forward(step)) - expected) ** 2))
        return error / power if power > 0.0 else 0.0


def _judged(step: Step, output: NDArray[np.float32]) -> NDArray[np.float64]:
    ids = step.inputs.get("input_ids")
    found = output if ids is None else output[np.asarray(ids) == vocabulary.MASK]
    return found.astype(np.float64)
