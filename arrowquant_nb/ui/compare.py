"""`aq.compare`: runs beside each other in a notebook, as words, one figure and tables; `explore` adds the controls."""

from html import escape
from pathlib import Path
from typing import Any, Final

from IPython.display import HTML, display

from arrowquant_nb import tables
from arrowquant_nb.results import QuantizationResult
from arrowquant_nb.run_comparison import SHOWS, SORTS, LayerChange, RunComparison, compare_runs
from arrowquant_nb.ui.compare_chart import SHOWN_ROWS, comparison_figure, dumbbell_svg, front_svg
from arrowquant_nb.ui.picture import Picture

__all__ = ["Comparison", "compare"]

_LAYER_HEADER: Final = ("layer", "A", "B", "change", "bits", "MB")
_RUN_HEADER: Final = ("run", "model", "MB", "bits/weight", "median", "worst", "best at its size")


class Comparison:
    """Runs beside each other; what a notebook cell shows of `compare`.

    Attributes
    ----------
    data : RunComparison
        The joined rows, for code.
    """

    def __init__(self, data: RunComparison) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"Comparison({', '.join(run.label for run in self.data.runs)}: {self.data.verdict})"

    def __str__(self) -> str:
        parts = [self._heading(), tables.text_table(_RUN_HEADER, self._run_rows())]
        if self.data.changes:
            parts.append(tables.text_table(_LAYER_HEADER, map(_cells, self.data.rows()[:SHOWN_ROWS])))
        parts.append(tables.text_table(*self._settings()))
        return "\n\n".join(parts)

    def pair(self, a: str, b: str) -> "Comparison":
        """Return the comparison of two other of the runs, by their letters."""
        return Comparison(self.data.pair(a, b))

    def picture(self, sort: str = SORTS[0], show: str = SHOWS[0], find: str = "") -> Picture:
        """Return the figure with its still twin; see `RunComparison.rows` for what can be chosen."""
        rows = self.data.rows(sort, show, find)
        still = dumbbell_svg(self.data, rows) or front_svg(self.data)
        return Picture(comparison_figure(self.data, rows), still, f"{self._heading()} The tables say the same.")

    def explore(self) -> Any:
        """Return the comparison with controls: sort, show, find, and which two of the runs (needs ipywidgets)."""
        from arrowquant_nb.ui.compare_controls import CompareControls  # noqa: PLC0415 - widgets only when asked for

        return CompareControls(self.data).box

    def html(self, sort: str = SORTS[0], show: str = SHOWS[0], find: str = "", limit: int = SHOWN_ROWS) -> str:
        """Return words, still pictures and tables; reads without scripts."""
        rows = self.data.rows(sort, show, find)
        pictures = [dumbbell_svg(self.data, rows), front_svg(self.data)]
        return f"<p role='status'>{escape(self._heading())}</p>{''.join(pictures)}{self.tables(rows, limit)}"

    def tables(self, rows: list[LayerChange], limit: int = SHOWN_ROWS) -> str:
        """Return the table twin of the figure, the runs, the settings that differ, and what is not in both."""
        parts = [tables.html_table(_RUN_HEADER, self._run_rows(), "Runs")]
        if rows:
            header = ("layer", self.data.a.label, self.data.b.label, *_LAYER_HEADER[3:])
            caption = f"{min(limit, len(rows))} of {len(rows)} layers, {self.data.measure}"
            parts.append(tables.html_table(header, map(_cells, rows[:limit]), caption))
        parts.append(tables.html_table(*self._settings(), self._settings_caption()))
        if self.data.not_in_both:
            names = [[name] for name in self.data.not_in_both]
            count = f"Not in both: {len(names)} tensors"
            parts.append(f"<details><summary>{count}</summary>{tables.html_table(('tensor',), names)}</details>")
        return "".join(parts)

    def _repr_html_(self) -> str:
        return self.html()

    def _ipython_display_(self) -> None:
        for part in self.parts():
            display(part)  # type: ignore[no-untyped-call]

    def parts(self) -> tuple[HTML, Picture, HTML]:
        """Return what a cell shows: words, the figure, its tables."""
        words = HTML(f"<p role='status'>{escape(self._heading())}</p>")  # type: ignore[no-untyped-call]
        return words, self.picture(), HTML(self.tables(self.data.rows()))  # type: ignore[no-untyped-call]

    def _heading(self) -> str:
        return "; ".join([*(run.words for run in self.data.runs[:6]), self.data.verdict]) + "."

    def _run_rows(self) -> list[list[str]]:
        front = {run.letter for run in self.data.front}
        return [
            [
                run.label, run.result.model, f"{run.size_mb:.3f}", f"{run.result.bits_per_weight:.3f}",
                tables.decibels(run.median_db), tables.decibels(min(run.quality.values(), default=run.median_db)),
                "yes" if run.letter in front else "no",
            ]
            for run in self.data.runs
        ]  # fmt: skip

    def _settings(self) -> tuple[list[str], list[list[str]]]:
        header = ["setting", *(run.letter for run in self.data.runs)]
        return header, [[name, *map(str, values)] for name, values in self.data.settings]

    def _settings_caption(self) -> str:
        return f"Settings that differ ({len(self.data.settings)})"


def compare(*runs: QuantizationResult | str | Path) -> Comparison:
    """Compare two or more runs: layer by layer, size against quality, and the settings that differ.

    Parameters
    ----------
    *runs : QuantizationResult, str or Path
        Results, model folders, or notebooks that `arrowquant run` or `arrowquant batch` executed; the first two are
        compared layer by layer.

    Returns
    -------
    Comparison
        A notebook cell shows it; `str()` gives text, `.data` the rows, `.explore()` the controls.

    Raises
    ------
    ConfigurationError
        Fewer than two runs.
    ModelNotFoundError, ValidationError, MetadataError
        One of them cannot be read.
    """
    return Comparison(compare_runs(*runs))


def _cells(change: LayerChange) -> list[str]:
    return [
        change.name, tables.decibels(change.a_db), tables.decibels(change.b_db), change.words.rpartition(" ")[0],
        change.bits, f"{change.nbytes / 1e6:+.4f}",
    ]  # fmt: skip
