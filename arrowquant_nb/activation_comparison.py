"""What rounding the inputs of layers costs a bundled sample: on one grid, on one per time group, with token scales.

Quantizes the sample into folders that are thrown away, with 8-bit weights so that the inputs decide, and measures the
network's output. Knows nothing of how the figures are drawn on a page.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from arrowquant_nb import tables
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.sample_quality import evaluate_sample
from arrowquant_nb.sample_trials import SampleTrials
from arrowquant_nb.storage.quantized import open_quantized

__all__ = ["ActivationComparison", "RoundedRun", "compare_activations"]

SETTINGS: Final[dict[str, Any]] = {
    "bit_width": 8, "group_size": 64, "scale_format": "float16", "calibration_samples": 16, "min_accuracy": 0.9,
}  # fmt: skip
ONE_GRID, PER_TOKEN = "one static grid", "a scale per token"


@dataclass(frozen=True)
class RoundedRun:
    """The sample with its inputs rounded in one way."""

    name: str
    """Such as "4 timestep groups"."""
    bit_width: int
    """Bits of an input, 4 or 8."""
    network_sqnr_db: float
    """Network output against the trained model, in dB."""


@dataclass(frozen=True, repr=False)
class ActivationComparison:
    """Ways of rounding inputs, side by side."""

    sample: str
    n: int
    """Samples that were measured."""
    seed: int
    float_sqnr_db: float
    """The network's output with these weights and float inputs: what no rounding can exceed."""
    runs: tuple[RoundedRun, ...]

    def __repr__(self) -> str:
        return f"ActivationComparison({self.sample!r}, {len(self.runs)} runs)"

    def __str__(self) -> str:
        return f"{self._caption()}\n\n{tables.text_table(self._header(), self._rows())}"

    def _repr_html_(self) -> str:
        return tables.html_table(self._header(), self._rows(), self._caption())

    @property
    def bit_widths(self) -> tuple[int, ...]:
        """Widths of the inputs, widest first."""
        return tuple(sorted({run.bit_width for run in self.runs}, reverse=True))

    def of_width(self, bit_width: int) -> dict[str, float]:
        """Return the network SQNR in dB by the way of rounding, for one width."""
        return {run.name: run.network_sqnr_db for run in self.runs if run.bit_width == bit_width}

    def _caption(self) -> str:
        return (
            f"{self.sample}, 8-bit weights, {self.n} samples, seed {self.seed}; network SQNR, with float inputs "
            f"{tables.decibels(self.float_sqnr_db)}"
        )

    def _header(self) -> list[str]:
        return ["inputs", *(f"{bits} bits" for bits in self.bit_widths)]

    def _rows(self) -> list[list[str]]:
        columns = [self.of_width(bits) for bits in self.bit_widths]
        return [[name, *(tables.decibels(c[name]) if name in c else "" for c in columns)] for name in columns[0]]


def compare_activations(
    sample: str,
    n_groups: int = 4,
    *,
    n: int = 8,
    seed: int = 0,
    progress_callback: Callable[[str, float], None] | None = None,
) -> ActivationComparison:
    """Quantize a bundled sample with rounded inputs, in several ways and at 8 and 4 bits, and measure each.

    Parameters
    ----------
    sample : str
        One of `samples.names()`.
    n_groups : int
        Most timestep groups of a layer; exact grouping may use fewer.
    n, seed : int
        Samples that are measured, and the seed of their starting noise.
    progress_callback : callable, optional
        Called with (message, fraction), the fraction rising from 0.0 to 1.0.

    Raises
    ------
    ModelNotFoundError
        There is no such sample.
    """
    ways: dict[str, dict[str, Any]] = {
        ONE_GRID: {"enable_time_aware": False, "enable_spatial": False},
        f"{n_groups} timestep groups": {"num_time_groups": n_groups, "enable_spatial": False},
        f"{n_groups} groups, channels evened out": {"num_time_groups": n_groups, "enable_spatial": True},
    }
    runs: list[RoundedRun] = []
    float_db = 0.0
    with SampleTrials(sample, 2 * len(ways), progress_callback) as trials:
        for bits, (name, settings) in itertools.product((8, 4), ways.items()):
            trials.say(f"{bits}-bit inputs, {name}")
            result = trials.quantize(DiffusionQuantConfig(**SETTINGS, activation_bit_width=bits, **settings))
            with open_quantized(result.quantized_path) as model:
                figures = evaluate_sample(sample, model, n, seed)
                runs.append(RoundedRun(name, bits, figures["network_sqnr_db"]))
                if name == ONE_GRID:
                    tokens = evaluate_sample(sample, model, n, seed, "per_token")
                    runs.append(RoundedRun(PER_TOKEN, bits, tokens["network_sqnr_db"]))
                    if bits == 8:
                        float_db = evaluate_sample(sample, model, n, seed, "float")["network_sqnr_db"]
        trials.say("measured")
    return ActivationComparison(sample, n, seed, float_db, tuple(runs))
