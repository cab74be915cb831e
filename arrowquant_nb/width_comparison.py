"""What each bit width costs a bundled sample: what the original and its 8-, 4- and 2-bit versions draw and measure.

Quantizes the sample with each profile into a folder that is thrown away, unless a run with equal settings is at hand,
and measures what came out. Knows nothing of how the images are drawn on a page.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb import samples, tables
from arrowquant_nb.api import ArrowQuantV2, open_quantized
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.results import PlanRow, QuantizationResult
from arrowquant_nb.sample_quality import evaluate_sample, quantized_sample
from arrowquant_nb.sample_trials import SampleTrials

__all__ = ["DrawnModel", "WidthComparison", "compare_widths"]

PROFILES: Final = ("cloud", "local", "edge")
CALIBRATION_SAMPLES: Final = 32
"""In every row, so that the model is run once for all; more changes little (the profiles have up to 512)."""
SHOWN_TEXTS: Final = 3
_WRITTEN_HEADER: Final = ("model", "what it writes")
_FIGURES: Final[Mapping[str, tuple[str, Callable[[float], str]]]] = {
    "network_sqnr_db": ("network SQNR", tables.decibels),
    "sample_psnr_db": ("sample PSNR (median)", tables.decibels),
    "frechet_distance": ("Frechet distance", "{:.2f}".format),
    "log_spectral_distance_db": ("spectral distance", tables.decibels),
    "kl": ("KL, nats", "{:.4f}".format),
    "top1_agreement": ("same likeliest character", "{:.1%}".format),
    "nelbo": ("NELBO, nats", "{:.3f}".format),
}
"""Key of `samples.evaluate` -> column and how its figures are written; a sample has those of its modality."""


@dataclass(frozen=True, eq=False)
class DrawnModel:
    """One row of the comparison."""

    name: str
    """Such as "original" or "INT4 (local)"."""
    images: NDArray[np.float32] | None
    """(n, height, width) in [-1, 1], drawn from the same noise in every row; of sound, log-spectra with the lowest
    frequency at the bottom. None of a language model."""
    texts: tuple[str, ...]
    """What a language model writes, from the same draws in every row."""
    bits_per_weight: float
    """Over the quantized tensors, scales counted; of the source for the original."""
    size_mb: float
    """Payload of all tensors, 10^6 bytes."""
    figures: Mapping[str, float]
    """What `samples.evaluate` measures, against the original."""
    widths: str
    """How many tensors have which width, such as "24 INT4, 4 INT8, 54 kept"."""
    fell_back: int
    """Layers that needed more bits than the profile asks for."""

    @property
    def network_sqnr_db(self) -> float:
        """Network output against the original along the original's own trajectories; inf for the original."""
        return self.figures["network_sqnr_db"]

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
        """Label -> images, ready for `ui.figures.sample_grid`; empty for a language model."""
        return {model.label: model.images for model in self.models if model.images is not None}

    def __repr__(self) -> str:
        return f"WidthComparison({self.sample!r}, {', '.join(model.name for model in self.models)})"

    def __str__(self) -> str:
        parts = [self._caption(), tables.text_table(self._header(), self._rows())]
        if written := self._written():
            parts.append(tables.text_table(_WRITTEN_HEADER, written))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        table = tables.html_table(self._header(), self._rows(), self._caption())
        written = self._written()
        return table + (tables.html_table(_WRITTEN_HEADER, written) if written else "")

    def _caption(self) -> str:
        return (
            f"{self.sample}, {self.n} samples, seed {self.seed}; figures against the original, "
            "bits per weight of the quantized tensors"
        )

    def _columns(self) -> list[str]:
        return [key for key in _FIGURES if key in self.models[0].figures]

    def _header(self) -> list[str]:
        figures = [_FIGURES[key][0] for key in self._columns()]
        return ["model", "tensors", "bits per weight", "payload MB", *figures, "layers fallen back"]

    def _rows(self) -> list[list[str]]:
        return [
            [
                model.name,
                model.widths,
                f"{model.bits_per_weight:.4g}",
                f"{model.size_mb:.3f}",
                *(_FIGURES[key][1](model.figures[key]) for key in self._columns()),
                "-" if math.isinf(model.network_sqnr_db) else str(model.fell_back),
            ]
            for model in self.models
        ]

    def _written(self) -> list[list[str]]:
        return [[model.name, repr(text)] for model in self.models for text in model.texts[:SHOWN_TEXTS]]


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
        Samples that the figures are measured on, see `samples.evaluate`.
    n_images : int
        Images or texts per row; classes go round.
    seed : int
        Of the starting noise.
    progress_callback : callable, optional
        Called with (message, fraction), the fraction rising from 0.0 to 1.0.

    Raises
    ------
    ModelNotFoundError
        There is no such sample.
    """
    unmatched = finished
    with SampleTrials(sample, 5, progress_callback) as trials:
        trials.say("drawing from the original")
        rows = [_original(sample, n=n, n_images=n_images, seed=seed)]
        for profile in PROFILES:
            config = DiffusionQuantConfig.from_profile(profile, calibration_samples=CALIBRATION_SAMPLES)
            trials.say(f"INT{config.bit_width}: quantizing, drawing, measuring")
            if finished is not None and _equal_but_for_the_machine(finished, config):
                result, unmatched = finished, None
            else:
                result = trials.quantize(config)
            rows.append(_drawn(f"INT{config.bit_width} ({profile})", sample, result, n=n, n_images=n_images, seed=seed))
        trials.say("INT2 in every layer: quantizing, drawing, measuring")
        result = trials.quantize(_two_bits_everywhere(sample))
        rows.append(_drawn("INT2 (every layer)", sample, result, n=n, n_images=n_images, seed=seed))
        if unmatched is not None:
            rows.append(
                _drawn(f"INT{unmatched.bit_width} (this run)", sample, unmatched, n=n, n_images=n_images, seed=seed)
            )
        trials.say("drawn and measured")
    return WidthComparison(sample, n, seed, tuple(rows))


def _two_bits_everywhere(sample: str) -> DiffusionQuantConfig:
    """Return edge settings under which no layer is raised by policy or gate: what 2 bits alone can do."""
    rows = ArrowQuantV2().plan(sample).rows
    widths = {row.name: 2 for row in rows if row.action == "quantized"}
    return DiffusionQuantConfig.from_profile(
        "edge",
        min_accuracy=0.0,
        min_output_sqnr_db=-100.0,
        calibration_samples=CALIBRATION_SAMPLES,
        layer_bit_widths=widths,
    )


def _original(sample: str, *, n: int, n_images: int, seed: int) -> DrawnModel:
    plan = ArrowQuantV2().plan(sample)
    images, texts = _draw(sample, samples.runnable(sample), n_images, seed)
    figures = _numbers(samples.evaluate(sample, None, n, seed))
    return DrawnModel("original", images, texts, _bits(plan.rows), plan.source_size_mb, figures, "as trained", 0)


def _drawn(name: str, sample: str, result: QuantizationResult, *, n: int, n_images: int, seed: int) -> DrawnModel:
    with open_quantized(result.quantized_path) as model:
        images, texts = _draw(sample, quantized_sample(sample, model), n_images, seed)
        figures = _numbers(evaluate_sample(sample, model, n=n, seed=seed))
    return DrawnModel(
        name,
        images,
        texts,
        result.bits_per_weight,
        result.payload_nbytes / 1e6,
        figures,
        tables.width_counts(result.layers),
        sum(report.fell_back for report in result.layers),
    )


def _draw(
    sample: str, model: samples.Sample, n_images: int, seed: int
) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    """Return pictures, or texts."""
    drawn = model.sample(n_images, seed)
    if np.issubdtype(drawn.dtype, np.integer):
        return None, tuple(samples.decode(text) for text in drawn)
    images = drawn.astype(np.float32, copy=False)
    return (images[:, ::-1] if samples.modality(sample) == "audio" else images), ()


def _numbers(figures: Mapping[str, object]) -> dict[str, float]:
    return {key: float(value) for key, value in figures.items() if isinstance(value, int | float)}


def _equal_but_for_the_machine(result: QuantizationResult, config: DiffusionQuantConfig) -> bool:
    free = {"num_threads": 0, "seed": 0, "calibration_samples": 0}
    return result.config | free == config.to_dict() | free


def _bits(rows: Iterable[PlanRow]) -> float:
    quantized = [row for row in rows if row.action == "quantized"]
    n_weights = sum(row.n_weights for row in quantized)
    return 8 * sum(row.source_nbytes for row in quantized) / n_weights if n_weights else 0.0
