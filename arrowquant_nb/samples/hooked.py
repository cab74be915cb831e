"""A runnable model under a hook of its own, so that whoever evaluates models can evaluate a hook.

Knows nothing of what the hook does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .runnable import CALIBRATION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from .runnable import Linear, RunnableModel, Sample, Split, Step


@dataclass(frozen=True, eq=False)
class HookedModel:
    """A model whose products go through `linear` unless a call brings another hook; implements `RunnableModel`."""

    model: RunnableModel
    """The model that runs."""
    linear: Linear
    """Its hook."""

    @property
    def weights(self) -> Mapping[str, NDArray[np.float32]]:
        """The model's own weights."""
        return self.model.weights

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight by name."""
        return self.model.layers()

    def trajectories(self, n: int, seed: int) -> Iterable[Step]:
        """Yield the trajectories of the model without the hook."""
        return self.model.trajectories(n, seed)

    def forward(self, step: Step, linear: Linear | None = None) -> NDArray[np.float32]:
        """Return the network's output for one step."""
        return self.model.forward(step, linear or self.linear)


@dataclass(frozen=True, eq=False)
class HookedSample(HookedModel):
    """A bundled model under a hook; implements `Sample`."""

    model: Sample
    """The model that runs."""

    def trajectories(self, n: int, seed: int, split: Split = CALIBRATION) -> Iterable[Step]:
        """Yield the trajectories of the model without the hook."""
        return self.model.trajectories(n, seed, split)

    def sample(
        self, n: int, /, seed: int, steps: int | None = None, *, linear: Linear | None = None
    ) -> NDArray[np.float32] | NDArray[np.int64]:
        """Draw `n` samples under the hook; `steps` None takes the model's default."""
        if steps is None:
            return self.model.sample(n, seed, linear=linear or self.linear)
        return self.model.sample(n, seed, steps, linear=linear or self.linear)
