"""The bundled models through the classes of diffusers and transformers, so that what evaluates them can evaluate torch.

Samplers and data stay those of `arrowquant_nb.samples`; the network is the torch module's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiTTransformer2DModel
from transformers import BertForMaskedLM

from arrowquant_nb import samples
from arrowquant_nb.errors import ModelNotFoundError
from arrowquant_nb.runtime.time import time_context
from arrowquant_nb.samples.dit import DiT
from arrowquant_nb.samples.masked_lm import MaskedLM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arrowquant_nb.samples.runnable import Linear, Sample, Step

__all__ = ["load_sample", "through_torch"]


class _TorchDiT(DiT):
    """A diffusion transformer whose network is diffusers'."""

    module: Any

    def forward(self, step: Step, linear: Linear | None = None) -> NDArray[np.float32]:  # noqa: ARG002 - torch multiplies
        """Predict v for one step."""
        images = torch.from_numpy(np.asarray(step.inputs["hidden_states"], np.float32))
        labels = torch.from_numpy(np.asarray(step.inputs["class_labels"], np.int64))
        with torch.no_grad():
            output = self.module(images, timestep=torch.full_like(labels, step.time), class_labels=labels).sample
        return np.asarray(output.float().numpy())


class _TorchMaskedLM(MaskedLM):
    """A masked language model whose network is transformers'."""

    module: Any

    def forward(self, step: Step, linear: Linear | None = None) -> NDArray[np.float32]:  # noqa: ARG002 - torch multiplies
        """Predict every character of one step."""
        ids = torch.from_numpy(np.asarray(step.inputs["input_ids"], np.int64))
        with torch.no_grad(), time_context(step.time):
            output = self.module(input_ids=ids).logits
        return np.asarray(output.float().numpy())


def load_sample(name: str) -> Any:
    """Return a bundled model as the module of its own class, float32, in evaluation mode.

    Raises
    ------
    ModelNotFoundError
        No bundled model has that name.

    """
    if name not in samples.names():
        raise ModelNotFoundError(f"there is no bundled sample {name!r}; there are: {', '.join(samples.names())}")
    folder = samples.load(name)
    if isinstance(samples.runnable(name), DiT):
        kind: Any = DiTTransformer2DModel
        return kind.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True).eval()
    return BertForMaskedLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def through_torch(name: str, module: Any) -> Sample:
    """Return a bundled model that computes with a torch module, for `samples.evaluate(name, model=...)`.

    Parameters
    ----------
    name
        One of `samples.names()`.
    module
        `load_sample(name)`, quantized or not.

    """
    plain = samples.runnable(name)
    torch_class = _TorchDiT if isinstance(plain, DiT) else _TorchMaskedLM
    model: Any = object.__new__(torch_class)
    vars(model).update(vars(plain), module=module)
    found: Sample = model
    return found
