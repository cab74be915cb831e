"""Several runs at once, from a notebook or a server: awaited, limited, cancelled together.

Each run works in a thread of its own; the machine's cores are shared out among them, which changes no result.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from arrowquant_nb import _kernels
from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.results import QuantizationResult

__all__ = ["quantize_async"]


@overload
async def quantize_async(
    model_path: str | Path,
    output_path: str | Path,
    config: DiffusionQuantConfig | None = None,
    progress_callback: Callable[[str, float], None] | None = None,
    *,
    limit: int = 2,
    **options: Any,
) -> QuantizationResult: ...
@overload
async def quantize_async(
    model_path: Sequence[str | Path],
    output_path: Sequence[str | Path],
    config: DiffusionQuantConfig | Sequence[DiffusionQuantConfig] | None = None,
    progress_callback: Callable[[str, float], None] | None = None,
    *,
    limit: int = 2,
    **options: Any,
) -> list[QuantizationResult]: ...
async def quantize_async(
    model_path: str | Path | Sequence[str | Path],
    output_path: str | Path | Sequence[str | Path],
    config: DiffusionQuantConfig | Sequence[DiffusionQuantConfig] | None = None,
    progress_callback: Callable[[str, float], None] | None = None,
    *,
    limit: int = 2,
    **options: Any,
) -> QuantizationResult | list[QuantizationResult]:
    """Quantize one model, or several at once, without blocking the event loop.

    Parameters
    ----------
    model_path, output_path : path or sequence of paths
        One model, or as many models as outputs.
    config : settings for all, or one per model; default the local profile.
    progress_callback : called with (message, fraction) on the run's own thread. With several models the message begins
        with the output's name, and each has fractions of its own from 0.0 to 1.0.
    limit : int
        Models that are worked on at the same time; the others wait. With `num_threads` 0 each gets its share of the
        cores.
    **options
        As `ArrowQuantV2.quantize_diffusion_model` takes them, for all models.

    Returns
    -------
    QuantizationResult, or a list of them in the order of the models

    Raises
    ------
    ConfigurationError
        Numbers of models, outputs and configs that do not fit, the same output twice, or a limit below 1.
    ArrowQuantError
        The first error of a run. The others are stopped then, resumably; what has finished stays.

    Notes
    -----
    Cancelling the task stops every run after the piece it is at; the outputs are resumable.

    Examples
    --------
    In a notebook cell::

        results = await aq.quantize_async(["a", "b", "c"], ["a-int4", "b-int4", "c-int4"], limit=2)
    """
    if isinstance(model_path, str | Path):
        if not isinstance(output_path, str | Path) or not isinstance(config, DiffusionQuantConfig | None):
            raise ConfigurationError("one model needs one output and one config; give sequences of each, or none")
        return await ArrowQuantV2(config).quantize_diffusion_model_async(
            model_path, output_path, None, progress_callback, **options
        )
    outputs = _as_many("output_path", output_path, len(model_path))
    same = config is None or isinstance(config, DiffusionQuantConfig)
    given = [config or DiffusionQuantConfig()] * len(model_path) if same else config
    configs = _as_many("config", given, len(model_path))
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigurationError(f"limit is {limit!r}; it must be an integer of at least 1")
    if len(set(map(os.path.abspath, outputs))) < len(outputs):
        raise ConfigurationError("two models go to the same output; give each its own folder")
    at_once = asyncio.Semaphore(limit)
    threads = max(1, _kernels.resolve_threads(0) // min(limit, max(1, len(outputs))))

    async def run(model: str | Path, output: str | Path, settings: DiffusionQuantConfig) -> QuantizationResult:
        shared = settings if settings.num_threads else settings.replace(num_threads=threads)
        async with at_once:
            return await ArrowQuantV2(shared).quantize_diffusion_model_async(
                model, output, None, _named(progress_callback, Path(output).name), **options
            )

    jobs = [asyncio.ensure_future(run(*job)) for job in zip(model_path, outputs, configs, strict=True)]
    try:
        return list(await asyncio.gather(*jobs))
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


def _as_many(name: str, values: object, n: int) -> Sequence[Any]:
    if isinstance(values, str | Path) or not isinstance(values, Sequence):
        raise ConfigurationError(f"{name} must be a sequence of {n}, one for each model")
    if len(values) != n:
        raise ConfigurationError(f"{name} has {len(values)} entries for {n} models; give one for each")
    return values


def _named(callback: Callable[[str, float], None] | None, name: str) -> Callable[[str, float], None] | None:
    """Return the callback with the output's name before each message."""
    if callback is None:
        return None

    def tell(message: str, fraction: float) -> None:
        callback(f"{name}: {message}", fraction)

    return tell
