"""Rows of the activation table: static grids, one or a few groups of timesteps, per token; and W4A4 with transforms.

digits-dit; the inputs of all block linears but the adaLN ones are rounded. Grids are fitted on one set of trajectories
and judged on another.
"""

from collections.abc import Iterator

import numpy as np
from threadpoolctl import threadpool_limits

import arrowquant_nb as aq
from arrowquant_nb.quantizers.activation_fit import fit_input
from arrowquant_nb.quantizers.activations import ActivationQuantizer, HadamardRotation

NAME = "digits-dit"
TRAJECTORIES = 16
ROWS = 64
"""Rows of a layer's input that are kept per step."""
EVALUATION_SEED = 100


def rows(seeds: list[int], n: int) -> Iterator[dict[str, object]]:
    """Yield one row per way of rounding; network SQNR in dB, a value per calibration seed."""
    model = aq.samples.runnable(NAME)
    names = [row.name for row in aq.ArrowQuantV2().plan(NAME).rows if row.action == "quantized"]
    layers = frozenset(name for name in names if "norm1" not in name)
    with threadpool_limits(1, user_api="blas"):
        captures = [_captured(model, layers, seed) for seed in seeds]
        weights = {name: aq.quantize_tensor(np.asarray(model.weights[name], np.float32), 4, 32) for name in layers}
        rounded = aq.samples.runnable(NAME, {**model.weights, **{k: v.dequantize() for k, v in weights.items()}})
        yield _row("W16A16", 16, "float", [float("inf")])
        for groups in (1, 4, 10):
            yield _row(f"A8 static, {groups} time group{'s' * (groups > 1)}", 8, "static", [
                _sqnr(n, _static(model, layers, found, 8, groups)) for found in captures
            ])  # fmt: skip
        yield _row("A8 per token", 8, "per token", [_sqnr(n, ActivationQuantizer(model.linear, 8, layers))])
        yield _row("W4A16 uls g32", 16, "float", [_sqnr(n, rounded.linear)])
        for groups, transform in ((1, {}), (4, {}), (4, {"smoothing": True}), (4, {"rotation": HadamardRotation(0)})):
            label = f"W4A4 static, {groups} time group{'s' * (groups > 1)}{', '.join(['', *transform])}"
            yield _row(label, 4, "static", [
                _sqnr(n, _static(rounded, layers, found, 4, groups, **transform)) for found in captures
            ])  # fmt: skip
        yield _row("W4A4 per token", 4, "per token", [_sqnr(n, ActivationQuantizer(rounded.linear, 4, layers))])
        turned = {name: _turned() for name in layers}
        per_token = ActivationQuantizer(rounded.linear, 4, layers, None, turned)
        yield _row("W4A4 per token, rotation", 4, "per token", [_sqnr(n, per_token)])


def _turned() -> object:
    from arrowquant_nb.quantizers.activations import InputTransform

    return InputTransform(rotation=HadamardRotation(0))


def _row(label: str, bits: int, kind: str, values: list[float]) -> dict[str, object]:
    return {"format": label, "bits": bits, "grids": kind, "network_sqnr_db": values}


def _sqnr(n: int, linear: object) -> float:
    return float(aq.samples.evaluate(NAME, None, n, EVALUATION_SEED, linear)["network_sqnr_db"])


def _static(model: object, layers: frozenset[str], found: dict, bits: int, groups: int, **transform: object) -> object:
    quantizer = aq.TimeAwareQuantizer(bits, groups)
    fitted = {name: fit_input(quantizer, name, *found[name], **transform) for name in layers}
    tables = quantizer.metadata(fit.table for fit in fitted.values())
    transforms = {name: fit.transform for name, fit in fitted.items()}
    return ActivationQuantizer(model.linear, bits, layers, tables, transforms)


def _captured(model: object, layers: frozenset[str], seed: int) -> dict[str, tuple[np.ndarray, ...]]:
    """Return per layer the times, the extremes of every channel and a sample of rows, step by step."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[object, ...]]] = {name: [] for name in layers}

    def hook(name: str, x: np.ndarray, time: int) -> np.ndarray:
        if name in found:
            flat = x.reshape(-1, x.shape[-1])
            chosen = np.sort(rng.choice(len(flat), ROWS, replace=False))
            found[name].append((time, flat.min(0), flat.max(0), flat[chosen]))
        return model.linear(name, x, time)

    for step in model.trajectories(TRAJECTORIES, seed):
        model.forward(step, hook)
    return {name: tuple(map(np.array, zip(*steps, strict=True))) for name, steps in found.items()}
