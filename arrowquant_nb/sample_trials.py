"""A bundled sample quantized again and again, each time into a folder that is thrown away.

What stands between comparing settings and running them: scratch folders, one BLAS thread, progress. Knows nothing of
what is compared.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from threadpoolctl import threadpool_limits

from arrowquant_nb import samples
from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.errors import ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.results import QuantizationResult

__all__ = ["SampleTrials"]


class SampleTrials:
    """Trials of one bundled sample; a context manager, whose folders are gone at its end.

    The sample's matrices are small: one BLAS thread is faster than several, and the same on every machine.

    Parameters
    ----------
    sample : one of `samples.names()`.
    n_stages : stages that `say` counts.
    progress_callback : called with (message, fraction), the fraction rising from 0.0 to 1.0.

    Raises
    ------
    ModelNotFoundError
        There is no such sample.
    """

    def __init__(
        self, sample: str, n_stages: int, progress_callback: Callable[[str, float], None] | None = None
    ) -> None:
        if sample not in samples.names():
            raise ModelNotFoundError(f"there is no bundled sample {sample!r}; there are: {', '.join(samples.names())}")
        self.sample = sample
        self._n_stages = n_stages
        self._stage = 0
        self._n_folders = 0
        self._progress = progress_callback
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._scratch = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._stack.enter_context(threadpool_limits(1, user_api="blas"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def say(self, message: str) -> None:
        """Tell that the next stage begins; past the last one, that all is done."""
        if self._progress is not None:
            self._progress(message, min(1.0, self._stage / self._n_stages))
        self._stage += 1

    def quantize(self, config: DiffusionQuantConfig) -> QuantizationResult:
        """Quantize the sample into a folder of its own."""
        self._n_folders += 1
        folder = Path(self._scratch, str(self._n_folders))
        return ArrowQuantV2(config).quantize_diffusion_model(self.sample, folder)
