"""What it takes to run a diffusion model layer by layer: the `RunnableModel` protocol and its `Step`.

The one hook, `linear`, stands for every product with a weight matrix. Whoever evaluates quantized weights, quantizes
activations or records a layer's inputs passes a hook and leaves the model alone. Nothing here knows a particular model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

STEPS = 25
"""Sampling steps of a trajectory, and of a sample unless said otherwise."""
GUIDANCE = 1.5
"""Classifier-free guidance scale (Ho and Salimans 2022), likewise: prediction = null + guidance (class - null)."""

Split = Literal["calibration", "evaluation"]
"""Which part of a model's own data a trajectory is drawn from, so that no figure is taken on what was calibrated on."""
CALIBRATION: Final = "calibration"
EVALUATION: Final = "evaluation"


class Linear(Protocol):
    """A product with one weight matrix: the hook that a model calls once per layer and forward pass."""

    def __call__(self, name: str, x: NDArray[np.float32], time: int) -> NDArray[np.float32]:
        """Return ``x @ W.T`` for the weight `name`, without the bias, which the model adds itself.

        Parameters
        ----------
        name
            The weight's full name in the checkpoint, one of `RunnableModel.layers()`.
        x
            float32 (..., columns). A convolution's input comes as rows of columns = input channels x kernel height x
            kernel width, matching its weight [O, I, kh, kw] read as [O, I*kh*kw].
        time
            Training timestep of the whole batch.

        Returns
        -------
        NDArray[np.float32]
            float32 (..., rows of the weight).

        """
        ...


@dataclass(frozen=True, eq=False)
class Step:
    """The input of one network call on a sampling trajectory."""

    inputs: Mapping[str, NDArray[np.generic]]
    """Arrays by the argument name that the model's diffusers class gives them; the first axis is the batch."""
    time: int
    """Training timestep, the same for the whole batch."""


class RunnableModel(Protocol):
    """A diffusion model whose every product with a weight matrix goes through one hook."""

    @property
    def weights(self) -> Mapping[str, NDArray[np.float32]]:
        """Every tensor of the model by its checkpoint name, float32, read-only."""
        ...

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every linear and convolution weight by its checkpoint name, in the order of use."""
        ...

    def trajectories(self, n: int, seed: int) -> Iterable[Step]:
        """Yield the network calls of `n` samples drawn from `seed`, most noisy first: what calibration runs through.

        The bundled models also take ``split="evaluation"``: a masked language model then masks other text. A model that
        runs itself to find its steps may take the hook of those calls as `linear`.
        """
        ...

    def forward(self, step: Step, linear: Linear | None = None) -> NDArray[np.float32]:
        """Return the network's output for one step; `linear` None multiplies by the model's own weights."""
        ...


class Sample(RunnableModel, Protocol):
    """A bundled model: it knows data of its own, and draws."""

    def trajectories(self, n: int, seed: int, split: Split = CALIBRATION) -> Iterable[Step]:
        """Yield the network calls of `n` samples drawn from `seed` in one part of the model's data."""
        ...

    def sample(
        self, n: int, /, seed: int, steps: int = STEPS, *, linear: Linear | None = None
    ) -> NDArray[np.float32] | NDArray[np.int64]:
        """Draw `n` samples; the same seed starts from the same noise whatever the weights."""
        ...
