"""Runs beside each other: layer by layer, size against quality, and the settings that differ.

Joins results, model folders and executed notebooks to plain rows; how they are drawn is for `ui` to say.
"""

import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from arrowquant_nb import tables
from arrowquant_nb.errors import ConfigurationError, MetadataError, ModelNotFoundError
from arrowquant_nb.layer_reports import LayerReport
from arrowquant_nb.results import QuantizationResult
from arrowquant_nb.runs.recorded import read_result

__all__ = ["NOTEBOOK_KEY", "SHOWS", "SORTS", "ComparedRun", "LayerChange", "RunComparison", "compare_runs", "read_run"]

NOTEBOOK_KEY: Final = "arrowquant_result"
"""Where in the metadata of an executed notebook the result stands."""
SORTS: Final = ("Largest change", "Worst in B", "Model order")
SHOWS: Final = ("All", "Better", "Worse", "Bits changed", "Same bits")


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One of the runs."""

    letter: str
    """A, B, ... as in every sentence and figure."""
    result: QuantizationResult
    quality: Mapping[str, float]
    """Name of each quantized layer -> SQNR in dB, of the same kind in all runs that are compared."""

    @property
    def size_mb(self) -> float:
        """Payload of all tensors, 10^6 bytes."""
        return self.result.payload_nbytes / 1e6

    @property
    def median_db(self) -> float:
        """Median over the quantized layers; NaN where there are none."""
        return median(self.quality.values()) if self.quality else math.nan

    @property
    def label(self) -> str:
        """Letter, profile and bits, such as "A local INT4"."""
        profile = self.result.config.get("deployment_profile", "")
        return " ".join(filter(None, (self.letter, str(profile), f"INT{self.result.bit_width}")))

    @property
    def words(self) -> str:
        """The label with the two figures that a run is chosen by."""
        quality = "" if math.isnan(self.median_db) else f" {tables.decibels(self.median_db)}"
        return f"{self.label} {self.size_mb:.3f} MB{quality}"


@dataclass(frozen=True)
class LayerChange:
    """A layer that both runs quantized."""

    name: str
    a_db: float
    b_db: float
    a_bits: int
    b_bits: int
    nbytes: int
    """Bytes that B takes more than A."""

    @property
    def change_db(self) -> float:
        """B less A, in dB: above zero is better."""
        return 0.0 if self.a_db == self.b_db else self.b_db - self.a_db

    @property
    def bits(self) -> str:
        """Such as "INT8->INT2", or "INT4" where both have the same."""
        before, after = tables.WIDTH_NAMES[self.a_bits], tables.WIDTH_NAMES[self.b_bits]
        return before if before == after else f"{before}->{after}"

    @property
    def words(self) -> str:
        """Such as "-25.6 dB INT8->INT2"."""
        return f"{_signed(self.change_db)} {self.bits}"


@dataclass(frozen=True, eq=False, repr=False)
class RunComparison:
    """Two or more runs, the pair that is compared layer by layer, and what differs between all of them."""

    runs: tuple[ComparedRun, ...]
    a: ComparedRun
    b: ComparedRun
    measure: str
    """What the decibels are: "layer-output SQNR", or "weight SQNR" where a run measured no outputs."""
    changes: tuple[LayerChange, ...]
    """Layers that both quantized, in the order of A."""
    not_in_both: tuple[str, ...]
    """Names of tensors that only A or only B has, or has quantized."""
    settings: tuple[tuple[str, tuple[object, ...]], ...]
    """Name of each setting that differs, and its value in every run."""

    def pair(self, a: str, b: str) -> "RunComparison":
        """Return the same runs with another pair compared layer by layer, by their letters.

        Raises
        ------
        ConfigurationError
            No run has that letter.
        """
        found = {run.letter: run for run in self.runs}
        for letter in (a, b):
            if letter not in found:
                raise ConfigurationError(f"there is no run {letter!r}; there are: {', '.join(found)}")
        return _joined(self.runs, found[a], found[b], self.measure)

    def rows(self, sort: str = SORTS[0], show: str = SHOWS[0], find: str = "") -> list[LayerChange]:
        """Return the layers that are asked for.

        Parameters
        ----------
        sort : one of `SORTS`.
        show : one of `SHOWS`.
        find : part of a name, or a pattern with `*`.

        Raises
        ------
        ConfigurationError
            Another word.
        """
        for word, known in ((sort, SORTS), (show, SHOWS)):
            if word not in known:
                raise ConfigurationError(f"{word!r} is none of: {', '.join(known)}")
        chosen = [change for change in self.changes if _shown(change, show) and _found(change.name, find)]
        if sort == SORTS[0]:
            return sorted(chosen, key=lambda change: (-abs(change.change_db), change.name))
        return sorted(chosen, key=lambda change: (change.b_db, change.name)) if sort == SORTS[1] else chosen

    @property
    def front(self) -> tuple[ComparedRun, ...]:
        """The runs that no other beats in size and median at once, from the smallest."""
        best: list[ComparedRun] = []
        for run in sorted(
            (r for r in self.runs if not math.isnan(r.median_db)), key=lambda r: (r.size_mb, -r.median_db)
        ):
            if not best or run.median_db > best[-1].median_db:
                best.append(run)
        return tuple(best)

    @property
    def verdict(self) -> str:
        """Say how B stands to A."""
        a, b = self.a, self.b
        if not self.changes:
            n = max(len(a.result.layers), len(b.result.layers))
            return f"These runs share 0 of {n} layer names; showing sizes only."
        share = b.size_mb / a.size_mb - 1 if a.size_mb else 0.0
        size = f"{abs(share):.0%} {'smaller' if share < 0 else 'larger'}" if abs(share) >= 0.005 else "as large"
        change = median(c.b_db for c in self.changes) - median(c.a_db for c in self.changes)
        quality = "as good" if abs(change) < 0.05 else f"{abs(change):.1f} dB {'better' if change > 0 else 'worse'}"
        return f"{b.letter} is {size} and {quality} (median of {len(self.changes)} layers)"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "verdict": self.verdict,
            "measure": self.measure,
            "runs": [{"letter": r.letter, "words": r.words, "size_mb": r.size_mb} for r in self.runs],
            "front": [run.letter for run in self.front],
            "layers": [{"name": c.name, "change": c.words, "nbytes": c.nbytes} for c in self.rows()],
            "not_in_both": list(self.not_in_both),
            "settings": {name: [str(value) for value in values] for name, values in self.settings},
        }


def compare_runs(*runs: QuantizationResult | str | Path) -> RunComparison:
    """Join runs that are given as results, model folders or executed notebooks; the first two are compared.

    Raises
    ------
    ConfigurationError
        Fewer than two runs.
    ModelNotFoundError, ValidationError, MetadataError
        One of them cannot be read.
    """
    if len(runs) < 2:
        raise ConfigurationError("Give two or more runs.")
    results = [read_run(run) for run in runs]
    outputs = all(_measures_outputs(result) for result in results)
    compared = tuple(
        ComparedRun(
            _letter(i), result, {r.name: _quality(r, outputs) for r in result.layers if r.action == "quantized"}
        )
        for i, result in enumerate(results)
    )
    return _joined(compared, compared[0], compared[1], "layer-output SQNR" if outputs else "weight SQNR")


def read_run(run: QuantizationResult | str | Path) -> QuantizationResult:
    """Return the result of a run: itself, of a model folder, or of a notebook that `arrowquant run` executed.

    Raises
    ------
    ModelNotFoundError, ValidationError, MetadataError
        There is none, or it cannot be read.
    """
    if isinstance(run, QuantizationResult):
        return run
    path = Path(run)
    if path.suffix != ".ipynb":
        return read_result(path)
    try:
        about = json.loads(path.read_bytes())["metadata"]
        if NOTEBOOK_KEY in about:
            return QuantizationResult.from_dict(about[NOTEBOOK_KEY])
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: there is no notebook here") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MetadataError(f"{path}: not an executed notebook ({type(error).__name__}: {error})") from error
    raise MetadataError(f"{path}: holds no result of a run; execute it with `arrowquant run` or `arrowquant batch`")


def _joined(runs: tuple[ComparedRun, ...], a: ComparedRun, b: ComparedRun, measure: str) -> RunComparison:
    before = {r.name: r for r in a.result.layers}
    after = {r.name: r for r in b.result.layers}
    shared = [name for name in a.quality if name in b.quality]
    changes = tuple(_change(before[name], after[name], a.quality[name], b.quality[name]) for name in shared)
    names = dict.fromkeys([*before, *after])
    apart = tuple(
        name for name in names if (name in a.quality) != (name in b.quality) or not (name in before and name in after)
    )
    return RunComparison(runs, a, b, measure, changes, apart, _settings(runs))


def _change(before: LayerReport, after: LayerReport, a_db: float, b_db: float) -> LayerChange:
    return LayerChange(before.name, a_db, b_db, before.bit_width, after.bit_width, after.nbytes - before.nbytes)


def _settings(runs: Sequence[ComparedRun]) -> tuple[tuple[str, tuple[object, ...]], ...]:
    names = dict.fromkeys(name for run in runs for name in run.result.config)
    rows = [(name, tuple(run.result.config.get(name) for run in runs)) for name in names if name != "num_threads"]
    return tuple((name, values) for name, values in rows if any(value != values[0] for value in values))


def _measures_outputs(result: QuantizationResult) -> bool:
    done = [r for r in result.layers if r.action == "quantized"]
    return bool(done) and not any(isinstance(r.output_sqnr, str) for r in done)


def _quality(report: LayerReport, outputs: bool) -> float:
    return report.quality_db if outputs else report.sqnr_db


def _shown(change: LayerChange, show: str) -> bool:
    return {
        "All": True,
        "Better": change.change_db > 0,
        "Worse": change.change_db < 0,
        "Bits changed": change.a_bits != change.b_bits,
        "Same bits": change.a_bits == change.b_bits,
    }[show]


def _found(name: str, find: str) -> bool:
    return fnmatch.fnmatchcase(name, find) if "*" in find else find.lower() in name.lower()


def _signed(value: float) -> str:
    return f"{value:+.1f} dB" if math.isfinite(value) else ("now exact" if value > 0 else "no longer exact")


def _letter(i: int) -> str:
    """Return A to Z, then A2 to Z2 and so on."""
    return chr(ord("A") + i % 26) + ("" if i < 26 else str(i // 26 + 1))
