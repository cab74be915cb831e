"""Quality gates and the fallback chain INT2 -> INT4 -> INT8: decisions over plain numbers.

Knows nothing of arrays, files or models. Two figures gate: the cosine of the weights, and, where calibration measured
it, the signal over error of the layer's output, as a mean and in the worst timestep group. Without calibration the
output gates read `not_measured` and never count as passed. Cosine and gain of the output are reported, never a gate.
"""

from __future__ import annotations

from typing import Final

from arrowquant_nb.config.profiles import K_GROUP_SIZES

BIT_WIDTHS: Final = (2, 4, 8)
NOT_MEASURED: Final = "not_measured"
PASSED: Final = "passed"
FAILED: Final = "failed"
WAIVED: Final = "waived"
REPORTED: Final = "reported"
# With `min_output_sqnr_db` the worst timestep group may lie this far below the mean.
WORST_GROUP_MARGIN_DB: Final = 3.0
# In place of the next width: a size limit decided this one, and a missed gate is recorded.
HELD: Final = -1


class OutputFigures:
    """What calibration measured of a layer's output.

    Attributes
    ----------
    sqnr_db, worst_sqnr_db : signal over error over all held-out rows, and in the worst timestep group.
    cosine : cosine similarity of the outputs.
    gain : <y, y'> / <y, y>, how much of the output is kept.
    """

    def __init__(self, sqnr_db: float, worst_sqnr_db: float, cosine: float, gain: float) -> None:
        self.sqnr_db = sqnr_db
        self.worst_sqnr_db = worst_sqnr_db
        self.cosine = cosine
        self.gain = gain


class GateRecord:
    """One gate of one attempt.

    Attributes
    ----------
    gate : weight_cosine, output_sqnr_db, output_worst_group_sqnr_db, output_cosine or output_gain.
    value : what was measured; None for `not_measured`.
    threshold : what it must reach; None for figures that are only reported.
    verdict : passed, failed, waived (measured, but the output gates decide), reported, or not_measured.
    """

    def __init__(self, gate: str, value: float | None, threshold: float | None, verdict: str) -> None:
        self.gate = gate
        self.value = value
        self.threshold = threshold
        self.verdict = verdict

    def to_dict(self) -> dict[str, object]:
        """Return plain values."""
        if self.value is None:
            return {"gate": self.gate, "value": NOT_MEASURED, "threshold": self.threshold}
        return {
            "gate": self.gate,
            "value": self.value,
            "threshold": self.threshold,
            "verdict": self.verdict,
        }


class Judgement:
    """Whether an attempt is accepted, and why.

    Attributes
    ----------
    passed : verdict over all gates.
    gates : every figure with its threshold and verdict.
    decided_by : the gate that failed first, or the one that stands for the pass.
    sentence : the same in plain words.
    """

    def __init__(self, passed: bool, gates: list[GateRecord], decided_by: str, sentence: str) -> None:
        self.passed = passed
        self.gates = gates
        self.decided_by = decided_by
        self.sentence = sentence


def fallback_chain(bit_width: int) -> list[int]:
    """Bit widths to try for a layer, narrowest first: 2 -> [2, 4, 8], 8 -> [8]."""
    return [b for b in BIT_WIDTHS if b >= bit_width]


def scale_layout(bit_width: int, group_size: int, scale_format: str) -> tuple[int, str]:
    """Group size and scale format of an attempt at `bit_width` by a layer that asked for these.

    Format k has few group sizes: INT2 g16 goes on as INT4 g32. INT8 has none: it takes float16 scales for 64 weights.
    """
    if scale_format != "k":
        return group_size, scale_format
    sizes = K_GROUP_SIZES.get(bit_width, ())
    if not sizes:
        return 64, "float16"
    return (group_size if group_size in sizes else 32), "k"


def stage_floor(bit_width: int) -> float:
    """Least weight cosine accepted after a fallback to `bit_width`, whatever lower value the user asked for."""
    if bit_width >= 8:
        return 0.95
    if bit_width >= 4:
        return 0.85
    return 0.0


def required_cosine(bit_width: int, requested: int, min_accuracy: float) -> float:
    """Weight cosine that this attempt must reach: the user's, and after a fallback at least the stage's floor."""
    if bit_width == requested:
        return min_accuracy
    return max(min_accuracy, stage_floor(bit_width))


def required_output_sqnr_db(bit_width: int, compensated: bool, min_output_sqnr_db: float | None) -> tuple[float, float]:
    """Output SQNR in dB that an attempt must reach: over all rows, and in the worst timestep group.

    The user's `min_output_sqnr_db` replaces the first at every width; the second is then 3 dB less.
    """
    if min_output_sqnr_db is not None:
        return min_output_sqnr_db, min_output_sqnr_db - WORST_GROUP_MARGIN_DB
    if bit_width >= 8:
        return 35.0, 30.0
    if bit_width >= 4:
        return 20.0, 16.0
    return (12.0, 9.0) if compensated else (9.0, 6.0)


def passes(value: float, threshold: float) -> bool:
    """Tell whether a measured figure reaches its threshold; a NaN never does."""
    return value >= threshold


def judge(
    bit_width: int,
    requested: int,
    compensated: bool,
    cosine: float,
    output: OutputFigures | None,
    min_accuracy: float,
    min_output_sqnr_db: float | None,
    next_bit_width: int,
) -> Judgement:
    """Judge one attempt at a layer.

    Parameters
    ----------
    bit_width, requested : width of this attempt, and the one the layer was to have.
    compensated : whether errors were moved between columns (GPTQ), which lowers the weight cosine on purpose: it is
        waived when the output gates pass.
    cosine : weight cosine of the attempt.
    output : figures of the layer's output on held-out rows; None without calibration.
    min_accuracy, min_output_sqnr_db : the user's thresholds; None takes the table's.
    next_bit_width : width that is tried after a failure, 0 where none is left, `HELD` where a size limit decided.
    """
    mean_db, worst_db = required_output_sqnr_db(bit_width, compensated, min_output_sqnr_db)
    gates = _output_gates(output, mean_db, worst_db)
    output_passed = output is not None and gates[0].verdict == PASSED and gates[1].verdict == PASSED
    weight = _gate("weight_cosine", cosine, required_cosine(bit_width, requested, min_accuracy))
    if weight.verdict == FAILED and compensated and output_passed:
        weight.verdict = WAIVED
    gates.insert(0, weight)
    decisive = _decisive(gates)
    passed = decisive.verdict != FAILED
    return Judgement(passed, gates, decisive.gate, explain(bit_width, decisive, gates, next_bit_width))


def explain(bit_width: int, decisive: GateRecord, gates: list[GateRecord], next_bit_width: int) -> str:
    """One plain sentence on the gate that decided; `next_bit_width` as in `judge`."""
    said = _measured(bit_width, decisive)
    asked = f"the {decisive.threshold:g}{_unit(decisive.gate)} asked for"
    if decisive.verdict == FAILED:
        if next_bit_width == HELD:
            return f"{said}, below {asked}; the size limit leaves no more bytes for it."
        if next_bit_width:
            return f"{said}, below {asked}, so INT{next_bit_width} is tried next."
        return f"{said}, below {asked}, and no wider format is left."
    waived = [g for g in gates if g.verdict == WAIVED and g.value is not None]
    if waived:
        return f"{said}, at or above {asked}; that outweighs a weight cosine of {waived[0].value:.5f}."
    return f"{said}, at or above {asked}."


def _output_gates(output: OutputFigures | None, mean_db: float, worst_db: float) -> list[GateRecord]:
    if output is None:
        return [GateRecord("output_sqnr_db", None, mean_db, NOT_MEASURED)]
    return [
        _gate("output_sqnr_db", output.sqnr_db, mean_db),
        _gate("output_worst_group_sqnr_db", output.worst_sqnr_db, worst_db),
        GateRecord("output_cosine", output.cosine, None, REPORTED),
        GateRecord("output_gain", output.gain, None, REPORTED),
    ]


def _gate(gate: str, value: float, threshold: float) -> GateRecord:
    return GateRecord(gate, value, threshold, PASSED if passes(value, threshold) else FAILED)


def _decisive(gates: list[GateRecord]) -> GateRecord:
    """Return the first gate that failed; else the output's mean where it was measured, else the weight cosine."""
    for gate in gates:
        if gate.verdict == FAILED:
            return gate
    return gates[1] if gates[1].verdict == PASSED else gates[0]


def _measured(bit_width: int, gate: GateRecord) -> str:
    digits = 5 if gate.gate == "weight_cosine" else 2
    value = gate.value if gate.value is not None else 0.0
    threshold = gate.threshold if gate.threshold is not None else 0.0
    shown = f"{value:.{digits}f}"
    if gate.verdict == FAILED and float(shown) >= threshold:  # rounded it would read as if it had passed
        shown = str(value)
    if gate.gate == "weight_cosine":
        return f"INT{bit_width} keeps a weight cosine of {shown}"
    if gate.gate == "output_sqnr_db":
        return f"INT{bit_width} gives the layer's output {shown} dB"
    return f"INT{bit_width} gives the layer's output {shown} dB in its worst timestep group"


def _unit(gate: str) -> str:
    return "" if gate == "weight_cosine" else " dB"
