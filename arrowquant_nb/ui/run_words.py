"""What a run says, in sentences: headline, progress, figures, and how it ended. Pure functions of `RunState`."""

import math
from typing import Final

from arrowquant_nb.tables import WIDTH_NAMES
from arrowquant_nb.ui.layer_name import list_name
from arrowquant_nb.ui.layer_state import LayerState
from arrowquant_nb.ui.run_state import CANCELLED, FAILED, FINISHED, RUNNING, RunState

__all__ = [
    "ATTEMPT_HEADER",
    "TABLE_HEADER",
    "attempt_rows",
    "decibels",
    "ending",
    "facts",
    "going_on",
    "headline",
    "layer_cells",
    "layer_headline",
    "megabytes",
    "progress",
    "stopped",
    "waiting",
]  # fmt: skip

# After so long without a word of a layer, the reader is told that it is still at it.
PATIENCE_S: Final = 3.0
_GO_ON: Final = "Resume"


def decibels(value: float | None) -> str:
    """Return "24.1 dB", "exact" or "not measured"."""
    if value is None:
        return "not measured"
    return f"{value:.1f} dB" if math.isfinite(value) else "exact"


def megabytes(nbytes: float) -> str:
    """Return bytes as MB of 10^6 bytes, with as many digits as tell something."""
    value = nbytes / 1e6
    return f"{value:.1f} MB" if value >= 10 else f"{value:.2f} MB" if value >= 0.1 else f"{value:.3f} MB"


def headline(state: RunState, output: str) -> str:
    """Return the one line that the form folds to."""
    profile = str(state.config.get("deployment_profile", "")).capitalize()
    bits = state.config.get("bit_width")
    width = f"INT{bits}" if bits else ""
    what = ", ".join(part for part in (profile, width, f"{len(state.quantized)} layers") if part)
    return f"{state.model or 'Run'}: {what} → {output}"


def progress(state: RunState) -> str:
    """Return how far it is, how fast, and what it is at."""
    n, done = len(state.quantized), len(state.decided)
    if state.phase:
        return f"{100 * state.fraction:.0f} % of calibration: {state.phase}"
    words = [f"{done:,} of {n:,} layers"]
    if state.status == RUNNING:
        if state.mb_per_s is not None:
            words.append(f"{state.mb_per_s:.3g} MB/s")
        if state.seconds_left is not None and done < n:
            words.append(f"about {_seconds(state.seconds_left)} left")
        if state.current:
            words.append(f"now: {_bare(state.current)}")
    return "   ".join(words)


def waiting(state: RunState, silent_s: float) -> str:
    """Return what to say while nothing is heard: before the first layer, or while a large one is worked on."""
    if state.status != RUNNING or state.phase:
        return ""
    current = state.layers.get(state.current)
    if current is None:
        return "Started. The plan is made; the first layer is being read." if not state.decided else ""
    size = megabytes(current.plan.source_nbytes)
    if silent_s >= PATIENCE_S:
        return f"Still on {_bare(current.name)} ({silent_s:.0f} s; it is {size})."
    return "" if state.decided else f"Started. The first layer is {_bare(current.name)} ({size})."


def facts(state: RunState) -> list[tuple[str, str]]:
    """Return quality, size and counts, label and value."""
    worst = state.worst()
    label, quality = "Quality", "no layer yet"
    if worst is not None:
        label = "SQNR of layer outputs" if worst.measured_output else "SQNR of weights"
        quality = f"{decibels(state.median_db())} median, {decibels(worst.sqnr_db)} worst"
    n_kept = sum(not layer.quantized for layer in state.layers.values())
    return [
        (label, quality),
        ("Stored size", f"{state.written_nbytes / 1e6:.2f} of {megabytes(state.planned_nbytes)} planned"),
        ("Fell back", f"{state.n_fell_back} of {len(state.quantized):,}"),
        ("Below gate", f"{state.n_below_gate} of {len(state.quantized):,}"),
        ("Kept in float", f"{n_kept:,} tensor{'' if n_kept == 1 else 's'}"),
    ]


def ending(state: RunState) -> str:
    """Return how a run ended, what is left, and what to do next; "" while it goes on."""
    n, done = len(state.quantized), len(state.decided)
    if state.status == FINISHED:
        worst = state.worst()
        size = float(state.summary.get("model_size_mb", state.written_nbytes / 1e6))
        sentence = f"Finished: {megabytes(state.written_nbytes)} of tensors stored, {size:.2f} MB on disk with records"
        if worst is not None:
            sentence += f", median {decibels(state.median_db())}, worst {decibels(worst.sqnr_db)}"
        return f"{sentence}, {state.n_fell_back} of {n:,} fell back."
    if state.status == CANCELLED:
        if not done:
            return f"Cancelled before the first layer was done. {going_on(state)} begins it again."
        return f"Cancelled after {done:,} of {n:,} layers. They are kept: {going_on(state)} goes on from there."
    if state.status == FAILED:
        first = state.message.partition("\n")[0].removeprefix("QuantizationError: ").rstrip(":. ")
        return f"Failed: {first}. {done - state.n_below_gate} of {n} layers are kept. {_advice(state)}"
    return ""


def going_on(state: RunState) -> str:
    """Return the word on the button that takes a run up again: "Run" while there is no layer to go on from."""
    return _GO_ON if len(state.decided) > state.n_below_gate else "Run"


def stopped(state: RunState) -> str:
    """Say that a run ended in mid-run without a word, and what to do next."""
    n, done = len(state.quantized), len(state.decided)
    if not done:
        return "The run stopped here before its first layer was done. Run it again: it begins anew."
    return f"The run stopped here at {done:,} of {n:,} layers. Run it again to resume: what is done is kept."


def _advice(state: RunState) -> str:
    """Return one next step after a failure."""
    below = [layer for layer in state.decided if layer.report is not None and not layer.report.passed]
    if not below:
        word = going_on(state)
        return f"{word} {'goes on from there' if word == _GO_ON else 'begins it again'}."
    others = f" and {len(below) - 1} more" if len(below) > 1 else ""
    return f"Keep {list_name(below[0])}{others} in float, or lower min_accuracy, and run it again."


def layer_headline(layer: LayerState, rank: int, n: int) -> str:
    """Return name, shape, size and rank of a layer."""
    shape = " x ".join(map(str, layer.plan.shape))
    weights = layer.plan.n_weights
    count = f"{weights / 1e6:.2f} M" if weights >= 100_000 else f"{weights:,}"
    worst = " (worst)" if rank == 0 else ""
    bits = "" if layer.report is None else f", {WIDTH_NAMES[layer.report.bit_width]} {layer.report.method}".rstrip()
    return f"{_bare(layer.name)}: {shape}, {count} weights{bits}, rank {rank + 1:,} of {n:,}{worst}"


def attempt_rows(layer: LayerState) -> list[list[str]]:
    """Return the rows of the table of attempts."""
    report = layer.report
    if report is None:
        return []
    rows = []
    for number, attempt in enumerate(report.attempts, 1):
        last = number == len(report.attempts)
        worst = attempt.worst_output_sqnr
        rows.append([
            str(number), WIDTH_NAMES[attempt.bit_width], attempt.method,
            "not measured" if isinstance(attempt.output_sqnr, str) else
            f"{attempt.output_sqnr:.1f} / {worst if isinstance(worst, str) else f'{worst:.1f}'} dB",
            _gate_words(layer) if last else "",
            f"{attempt.sqnr_db:.1f} dB", f"{attempt.cosine:.4f}", attempt.sentence,
        ])  # fmt: skip
    return rows


ATTEMPT_HEADER: Final = (
    "Attempt", "Bits", "Method", "Output SQNR mean / worst group", "Gate", "Weight SQNR", "Cosine", "Result",
)  # fmt: skip


def _gate_words(layer: LayerState) -> str:
    pair = (layer.gate_db, layer.worst_gate_db)
    return "not measured" if None in pair else f"{pair[0]:g} / {pair[1]:g}"


def _bare(name: str) -> str:
    return name.removesuffix(".weight")


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 100 else f"{value / 60:.0f} min"


def layer_cells(layer: LayerState, rank: int) -> list[str]:
    """Return the row of the table twin."""
    report = layer.report
    return [
        str(rank + 1) if report is not None and layer.quantized else "",
        layer.name,
        "" if report is None or not layer.quantized else decibels(layer.sqnr_db),
        decibels(layer.worst_db) if layer.worst_db is not None else "",
        f">= {layer.gate_db:g} / {layer.worst_gate_db:g}" if layer.gate_db is not None else "",
        WIDTH_NAMES[layer.plan.bit_width if report is None else report.bit_width],
        layer.plan.method if report is None else report.method,
        f"{(layer.plan.nbytes if report is None else report.nbytes) / 1e6:.3f}",
        layer.words,
    ]


TABLE_HEADER: Final[tuple[str, ...]] = (
    "Rank", "Layer", "SQNR", "Worst group", "Gate dB", "Bits", "Method", "MB", "State",
)  # fmt: skip
