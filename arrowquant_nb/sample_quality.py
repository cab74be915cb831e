"""A bundled sample in its quantized form: run it, and measure what quantizing cost at its output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arrowquant_nb import samples
from arrowquant_nb.runs import running
from arrowquant_nb.storage.quantized import QuantizedModel, open_quantized

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["evaluate_sample", "quantized_sample"]


def quantized_sample(name: str, model: QuantizedModel | str | Path, activations: str = "stored") -> samples.Sample:
    """Return a bundled sample that runs with the weights of its quantized form and rounds inputs as that says.

    Parameters
    ----------
    name : a bundled sample.
    model : its quantized form, open or as a folder.
    activations : "stored", as the model was quantized: on its grids per timestep group, with a scale per token where a
        layer has none; "per_token", a scale per token in all those layers, the reference; "float", not rounded.

    Returns
    -------
    samples.Sample
        `.forward`, `.sample`, `.trajectories`; its `.linear` is the hook, for any other forward pass of that model.

    Raises
    ------
    ModelNotFoundError, ShapeMismatchError, ConfigurationError
        There is no such sample; the folder holds another model; an unknown `activations`.
    """
    return running.quantized_sample(name, _opened(model), activations)


def _opened(model: QuantizedModel | str | Path) -> QuantizedModel:
    return model if isinstance(model, QuantizedModel) else open_quantized(model)


def evaluate_sample(
    name: str, model: QuantizedModel | str | Path, n: int = 20, seed: int = 0, activations: str = "stored"
) -> dict[str, Any]:
    """Measure what quantization cost a bundled sample at its output, its rounded inputs included.

    Parameters
    ----------
    name : a bundled sample.
    model : its quantized form, open or as a folder.
    n, seed : number of samples and seed of their starting noise.
    activations : what becomes of the inputs of layers, see `quantized_sample`.

    Returns
    -------
    dict
        `network_sqnr_db` (teacher-forced, over all sampling steps); images and audio: `sample_psnr_db` (median, same
        seed) and `frechet_distance` or `log_spectral_distance_db`; text and code: `kl`, `top1_agreement`, `nelbo` and
        `trained_nelbo`; and what they were measured on: n, steps, seed. `samples.evaluate` describes each.
    """
    opened = _opened(model)
    weights = opened.weights()
    running.bundled(name, opened, weights)  # refuses another model
    hook = running.rounding_hook(opened, running.product_with(weights), activations)
    return dict(samples.evaluate(name, weights, n, seed, hook))
