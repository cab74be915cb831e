"""What each bit width costs a bundled sample: the same noise turned into images by the original and by 8, 4 and 2 bits.

Quantizes the sample with each profile into a folder that is thrown away, unless a run with equal settings is at hand,
and measures what came out. Knows nothing of how the images are drawn on a page.
"""

import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from arrowquant_nb import samples, tables
from arrowquant_nb.api import ArrowQuantV2, evaluate_sample, open_quantized
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import ModelNotFoundError
from arrowquant_nb.results import PlanRow, QuantizationResult

__all__ = ["DrawnModel", "WidthComparison", "compare_widths"]

PROFILES: Final = ("cloud", "local", "edge")
_HEADER: Final = (
    "model", "tensors", "bits per weight", "payload MB", "network SQNR", "sample PSNR (median)", "layers fallen back",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class DrawnModel:
    """One row of the comparison."""

    name: str
    """Such as "original" or "INT4 (local)"."""
    images: NDArray[np.float32]
    """(n, height, width) in [-1, 1], drawn from the same noise in every row."""
    bits_per_weight: float
    """Over the quantized tensors, scales counted; of the source for the original."""
    size_mb: float
    """Payload of all tensors, 10^6 bytes."""
    network_sqnr_db: float
    """Network output against the original along the original's own trajectories; inf for the original."""
    sample_psnr_db: float
    """Median over the samples; inf for the original."""
    widths: str
    """How many tensors have which width, such as "24 INT4, 4 INT8, 54 kept"."""
    fell_back: int
    """Layers that needed more bits than the profile asks for."""

    @property
    def label(self) -> str:
        """Lines for the margin of a grid."""
        if math.isinf(self.network_sqnr_db):
            return f"{self.name}\n{self.bits_per_weight:.4g} bits/weight"
        return f"{self.name}\nnetwork SQNR {self.network_sqnr_db:.1f} dB\n{self.bits_per_weight:.3g} bits/weight"


@dataclass(frozen=True, eq=False, repr=False)
class WidthComparison:
    """The original and its quantized versions."""

    sample: str
    n: int
    """Samples that the figures were measured on."""
    seed: int
    models: tuple[DrawnModel, ...]

    @property
    def images(self) -> dict[str, NDArray[np.float32]]:
        """Label -> images, ready for `ui.figures.sample_grid`."""
        return {model.label: model.images for model in self.models}

    def __repr__(self) -> str:
        return f"WidthComparison({self.sample!r}, {', '.join(model.name for model in self.models)})"

    def __str__(self) -> str:
        return f"{self._caption()}\n\n{tables.text_table(_HEADER, self._rows())}"

    def _repr_html_(self) -> str:
        return tables.html_table(_HEADER, self._rows(), self._caption())

    def _caption(self) -> str:
        return (
            f"{self.sample}, {self.n} samples, seed {self.seed}; network SQNR and sample PSNR against the original, "
            "bits per weight of the quantized tensors"
        )

    def _rows(self) -> list[list[str]]:
        return [
            [
                model.name,
                model.widths,
                f"{model.bits_per_weight:.4g}",
                f"{model.size_mb:.3f}",
                tables.decibels(model.network_sqnr_db),
                tables.decibels(model.sample_psnr_db),
                "-" if math.isinf(model.network_sqnr_db) else str(model.fell_back),
            ]
            for model in self.models
        ]


def compare_widths(
    sample: str,
    finished: QuantizationResult | None = None,
    *,
    n: int = 20,
    n_images: int = 10,
    seed: int = 0,
    progress_callback: Callable[[str, float], None] | None = None,
) -> WidthComparison:
    """Quantize a bundled sample with the profiles cloud, local and edge, and to 2 bits throughout, and draw from each.

    Parameters
    ----------
    sample : str
        One of `samples.names()`.
    finished : QuantizationResult, optional
        A run over the same sample. It stands in for the profile whose settings it shares, else it is a row of its own.
    n : int
        Samples that network SQNR and sample PSNR are measured on.
    n_images : int
        Images per row; their classes go round.
    seed : int
        Of the starting noise.
    progress_callback : callable, optional
        Called with (message, fraction), the fraction rising from 0.0 to 1.0.

    Raises
    ------
    ModelNotFoundError
        There is no such sample.
    """
    if sample not in samples.names():
        raise ModelNotFoundError(f"there is no bundled sample {sample!r}; there are: {', '.join(samples.names())}")
    say = progress_callback or _silent
    labels = np.arange(n_images) % 10
    unmatched = finished
    # The model's matrices are small: one BLAS thread is faster than several, and the same on every machine.
    with tempfile.TemporaryDirectory() as scratch, threadpool_limits(1, user_api="blas"):
        say("drawing from the original", 0.0)
        rows = [_original(sample, samples.runnable(sample).sample(labels, seed))]
        for i, profile in enumerate(PROFILES):
            config = DiffusionQuantConfig.from_profile(profile)
            say(f"INT{config.bit_width}: quantizing, drawing, measuring", 0.2 * (i + 1))
            if finished is not None and _equal_but_for_the_machine(finished, config):
                result, unmatched = finished, None
            else:
                result = ArrowQuantV2(config).quantize_diffusion_model(sample, Path(scratch, profile))
            rows.append(_drawn(f"INT{config.bit_width} ({profile})", sample, result, labels, n=n, seed=seed))
        say("INT2 in every layer: quantizing, drawing, measuring", 0.8)
        result = ArrowQuantV2(_two_bits_everywhere(sample)).quantize_diffusion_model(sample, Path(scratch, "int2"))
        rows.append(_drawn("INT2 (every layer)", sample, result, labels, n=n, seed=seed))
        if unmatched is not None:
            say("this run: drawing, measuring", 0.9)
            rows.append(_drawn(f"INT{unmatched.bit_width} (this run)", sample, unmatched, labels, n=n, seed=seed))
    say("drawn and measured", 1.0)
    return WidthComparison(sample, n, seed, tuple(rows))


def _two_bits_everywhere(sample: str) -> DiffusionQuantConfig:
    """Return edge settings under which no layer is raised by policy or gate: what 2 bits alone can do."""
    rows = ArrowQuantV2().plan(sample).rows
    widths = {row.name: 2 for row in rows if row.action == "quantized"}
    return DiffusionQuantConfig.from_profile("edge", min_accuracy=0.0, layer_bit_widths=widths)


def _silent(message: str, fraction: float) -> None:
    """Take progress and show none of it."""


def _original(sample: str, images: NDArray[np.float32]) -> DrawnModel:
    plan = ArrowQuantV2().plan(sample)
    return DrawnModel("original", images, _bits(plan.rows), plan.source_size_mb, math.inf, math.inf, "as trained", 0)


def _drawn(
    name: str, sample: str, result: QuantizationResult, labels: NDArray[np.int64], *, n: int, seed: int
) -> DrawnModel:
    with open_quantized(result.quantized_path) as model:
        images = samples.runnable(sample, model.weights()).sample(labels, seed)
        figures = evaluate_sample(sample, model, n=n, seed=seed)
    return DrawnModel(
        name,
        images,
        result.bits_per_weight,
        result.payload_nbytes / 1e6,
        float(figures["network_sqnr_db"]),
        float(figures["sample_psnr_db"]),
        tables.width_counts(result.layers),
        sum(report.fell_back for report in result.layers),
    )


def _equal_but_for_the_machine(result: QuantizationResult, config: DiffusionQuantConfig) -> bool:
    free = {"num_threads": 0, "seed": 0}
    return result.config | free == config.to_dict() | free


def _bits(rows: Iterable[PlanRow]) -> float:
    quantized = [row for row in rows if row.action == "quantized"]
    n_weights = sum(row.n_weights for row in quantized)
    return 8 * sum(row.source_nbytes for row in quantized) / n_weights if n_weights else 0.0
