"""What a batch came to: one row per job with its parameters and the figures of its model, as Parquet and as a table.

Reads the records in the jobs' folders; runs nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from arrowquant_nb import tables
from arrowquant_nb.arrow_files import arrow_file
from arrowquant_nb.batch.job_queue import MODEL_NAME, NOTEBOOK_NAME, JobOutcome
from arrowquant_nb.errors import ArrowQuantError, MetadataError, ModelNotFoundError, OutputError
from arrowquant_nb.results import QuantizationResult
from arrowquant_nb.runs.recorded import read_result

__all__ = ["BatchSummary", "read_summary", "write_summary"]

SUMMARY_NAME: Final = "summary.parquet"
FIGURES: Final = (
    "source", "source_size_mb", "size_mb", "bits_per_weight", "weight_sqnr_db", "output_sqnr_db",
    "worst_output_sqnr_db", "fallback_rate",
)  # fmt: skip
"""Columns of a finished model: payload and source in 10^6 bytes, output figures over the layers (median, worst)."""
_OWN: Final = ("job", "state", "seconds", "error")
_SCHEMA_KEY: Final = b"arrowquant_parameters"


@dataclass(frozen=True, repr=False)
class BatchSummary:
    """The jobs of a batch."""

    folder: str
    rows: tuple[Mapping[str, Any], ...]
    """One per job: job, state, seconds, error, the parameters, and `FIGURES` (None where there is no model)."""
    parameters: tuple[str, ...]
    """Columns that hold parameters."""

    @property
    def passed(self) -> bool:
        """True when no job failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Mapping[str, Any], ...]:
        """The rows of the jobs that failed."""
        return tuple(row for row in self.rows if row["state"] == "failed")

    @property
    def models(self) -> Mapping[str, list[str]]:
        """Folders of the finished models by the model they were made from, to be compared with each other."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if row["source"] is not None and row["state"] != "failed":
                found.setdefault(row["source"], []).append(str(Path(self.folder, row["job"], MODEL_NAME)))
        return found

    def to_arrow(self) -> pa.Table:
        """Return the rows as an Arrow table; a parameter of several types is written as text."""
        columns = {name: _column([row[name] for row in self.rows]) for name in self._names()}
        return pa.table(columns).replace_schema_metadata({_SCHEMA_KEY: "\n".join(self.parameters).encode()})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        rows = [
            {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()} for r in self.rows
        ]
        notebooks = {row["job"]: str(Path(self.folder, row["job"], NOTEBOOK_NAME)) for row in self.rows}
        return {"folder": self.folder, "passed": self.passed, "jobs": rows, "notebooks": notebooks}

    def __repr__(self) -> str:
        return f"BatchSummary({self.folder!r}, {self._verdict()})"

    def __str__(self) -> str:
        return f"{self._verdict()}\n\n{tables.text_table(*self._table())}"

    def _repr_html_(self) -> str:
        return tables.html_table(*self._table(), self._verdict())

    def _names(self) -> tuple[str, ...]:
        return (*_OWN[:3], *self.parameters, *FIGURES, _OWN[3])

    def _verdict(self) -> str:
        n_skipped = sum(row["state"] == "skipped" for row in self.rows)
        skipped = f", {n_skipped} of them finished before" if n_skipped else ""
        good = f"{len(self.rows) - len(self.failures)} of {len(self.rows)} jobs finished{skipped}"
        return good + (f"; {len(self.failures)} FAILED" if self.failures else "")

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows: failures first, then the best by layer output; of the parameters those that vary."""
        varied = [p for p in self.parameters if len({repr(row[p]) for row in self.rows}) > 1]
        header = ["job", "state", *varied, "MB", "bits/weight", "output SQNR", "worst layer", "fell back", "time"]
        errors = ["what went wrong"] if self.failures else []
        rows = sorted(self.rows, key=lambda row: (row["state"] != "failed", -(row["output_sqnr_db"] or 0.0)))
        return header + errors, [self._cells(row, varied) + ([row["error"] or ""] if errors else []) for row in rows]

    @staticmethod
    def _cells(row: Mapping[str, Any], varied: Sequence[str]) -> list[str]:
        def figure(name: str, form: str) -> str:
            return "-" if row[name] is None else form.format(row[name])

        outputs = [
            "-" if row[k] is None else tables.decibels(row[k]) for k in ("output_sqnr_db", "worst_output_sqnr_db")
        ]
        return [
            row["job"], row["state"], *(str(row[name]) for name in varied), figure("size_mb", "{:.3f}"),
            figure("bits_per_weight", "{:.3f}"), *outputs, figure("fallback_rate", "{:.1%}"), f"{row['seconds']:.1f} s",
        ]  # fmt: skip


def write_summary(folder: Path, outcomes: Sequence[JobOutcome]) -> BatchSummary:
    """Collect the figures of every job and write them to `summary.parquet`.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    parameters = list(dict.fromkeys(name for outcome in outcomes for name in outcome.parameters))
    columns = {name: f"parameter_{name}" if name in (*_OWN, *FIGURES) else name for name in parameters}
    rows = []
    for outcome in outcomes:
        own = {"job": outcome.name, "state": outcome.state, "seconds": outcome.seconds, "error": outcome.error}
        given = {column: outcome.parameters.get(name) for name, column in columns.items()}
        rows.append(own | given | _figures(folder / outcome.name / MODEL_NAME if outcome.has_model else None))
    summary = BatchSummary(str(folder), tuple(rows), tuple(columns.values()))
    path = folder / SUMMARY_NAME
    part = path.with_name(path.name + ".part")
    try:
        with arrow_file(part, "wb") as file:
            pq.write_table(summary.to_arrow(), file)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    return summary


def read_summary(folder: str | Path) -> BatchSummary:
    """Read the summary of a batch from its folder.

    Raises
    ------
    ModelNotFoundError, MetadataError
        There is none, or it is not one of ours.
    """
    path = Path(folder) / SUMMARY_NAME
    if not path.is_file():
        raise ModelNotFoundError(
            f"{folder} has no {SUMMARY_NAME}: run `arrowquant batch` with this folder as its output"
        )
    try:
        with arrow_file(path) as file:
            table = pq.ParquetFile(file).read()
        parameters = tuple(filter(None, (table.schema.metadata or {})[_SCHEMA_KEY].decode().split("\n")))
        table = table.select([*_OWN[:3], *parameters, *FIGURES, _OWN[3]])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise MetadataError(
            f"{path} is not the summary of a batch ({error}); run the batch again to renew it"
        ) from error
    return BatchSummary(str(folder), tuple(table.to_pylist()), parameters)


def _figures(model: Path | None) -> dict[str, Any]:
    nothing = dict.fromkeys(FIGURES)
    if model is None:
        return nothing
    try:
        result = read_result(model)
    except ArrowQuantError:  # overwritten or damaged since: the job's own row stays
        return nothing
    outputs = _measured_outputs(result)
    return {
        "source": result.model,
        "source_size_mb": result.source_size_mb,
        "size_mb": result.payload_nbytes / 1e6,
        "bits_per_weight": result.bits_per_weight,
        "weight_sqnr_db": result.sqnr_db,
        "output_sqnr_db": median(outputs) if outputs else None,
        "worst_output_sqnr_db": min(outputs) if outputs else None,
        "fallback_rate": result.fallback_rate,
    }


def _measured_outputs(result: QuantizationResult) -> list[float]:
    return [r.output_sqnr for r in result.layers if not isinstance(r.output_sqnr, str)]


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 or kinds & {list, tuple, dict}:
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values) if kinds else pa.array(values, pa.string())
