"""The model card that every output carries: what it is, what it cost, what was kept and why, how to make it again.

Holds no time, host or path, so that equal runs write equal cards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arrowquant_nb.layer_tables import INPUT_HEADER, input_rows
from arrowquant_nb.tables import WIDTH_NAMES, decibels, width_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.network_quality import NetworkQuality, SizeOutcome
    from arrowquant_nb.runs.planning import Decisions

_SOURCE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e5m2": 8}


_OPENING = """```python
import arrowquant_nb as aq

model = aq.open_quantized("OUTPUT")
weight = model.dequantize(next(iter(model)))
```
"""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Pipe table; pipes, backticks and line breaks in cells are escaped."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(c) for c in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")[:200]


def _measured_rows(layers: Sequence[LayerReport]) -> list[list[str]]:
    done = [r for r in layers if r.action == "quantized"]
    n = sum(r.n_weights for r in done)
    source_bits = sum(r.n_weights * _SOURCE_BITS.get(r.dtype, 32) for r in done) / max(1, n)
    rows = [
        ["float original", f"{source_bits:.2f}", f"{sum(r.source_nbytes for r in done) / 1e6:.3f}", "exact", "1.00000"]
    ]
    for width in sorted({r.bit_width for r in done}):
        part = [r for r in done if r.bit_width == width]
        weights, nbytes = sum(r.n_weights for r in part), sum(r.nbytes for r in part)
        cosine = sum(r.cosine * r.n_weights for r in part) / weights
        worst = min(r.sqnr_db for r in part)
        rows.append(
            [
                f"{len(part)} layers {WIDTH_NAMES[width]}",
                f"{8 * nbytes / weights:.4f}",
                f"{nbytes / 1e6:.3f}",
                f"{decibels(worst)} (worst layer)",
                f"{cosine:.5f}",
            ]
        )
    return rows


def _outputs(layers: Sequence[LayerReport], decisions: Decisions) -> str:
    """Say how layer outputs came out, or why that is not known."""
    measured = [r.output_sqnr for r in layers if not isinstance(r.output_sqnr, str)]
    if not measured:
        return f"Layer outputs: not measured ({decisions.calibration.description})."
    middle = sorted(measured)[len(measured) // 2]
    return (
        f"Layer outputs on held-out inputs: {decibels(min(measured))} in the worst layer, {decibels(middle)} in the "
        f"median one ({decisions.calibration.description})."
    )


def _input_section(layers: Sequence[LayerReport]) -> list[str]:
    """Say what is done to the inputs of layers, nothing where nothing is."""
    rows = input_rows(layers)
    if not rows:
        return []
    return [
        "## Inputs of layers\n",
        markdown_table(INPUT_HEADER, rows) + "\n",
        "Gains are of the layer's output on calibration data; rounded inputs need the hook of `quantized_sample`.\n",
    ]


def _whole_section(network: NetworkQuality | None, size: SizeOutcome | None) -> list[str]:
    """Say what was measured of the network's output and how a size limit was kept."""
    said = []
    if network is not None:
        said.append(f"Network output: {_cell(network.words())}.")
    if size is not None:
        said.append(f"Size: {_cell(size.words())}.")
    return ["## Measured on the whole\n", " ".join(said) + "\n"] if said else []


def _sensitivity_section(layers: Sequence[LayerReport]) -> list[str]:
    """Say which layers are sensitive, where that was measured; the whole table stands in stats.parquet."""
    measured = [r.costs for r in layers if r.costs is not None]
    if not measured:
        return []
    rows = [[costs.name, costs.sentence] for costs in measured if costs.sensitive]
    found = markdown_table(("layer", "measured"), rows) if rows else "None stands out."
    return ["## Sensitive layers\n", f"{found}\n"]


def model_card(
    decisions: Decisions,
    config: DiffusionQuantConfig,
    layers: Sequence[LayerReport],
    hashes: Mapping[str, str],
    command: str,
    network: NetworkQuality | None = None,
    size: SizeOutcome | None = None,
) -> bytes:
    """Return the card as Markdown bytes; `command` makes the model again."""
    kept = [
        [r.name, WIDTH_NAMES[r.bit_width], r.role, r.reason]
        for r in layers
        if r.action == "kept" or r.requested_bit_width > config.bit_width
    ]
    fell = [
        [r.name, f"INT{r.requested_bit_width}", f"INT{r.bit_width}", " ".join(a.sentence for a in r.attempts)]
        for r in layers
        if r.fell_back
    ]
    parts = [
        f"# {_cell(decisions.model)}, quantized\n",
        (
            f"Quantized by arrowquant_nb to Parquet V2 Extended. "
            f"Modality: {decisions.modality} ({_cell(decisions.modality_reason)})\n"
            f"Strategy: {decisions.strategy.reason}\nTime-group tables: {decisions.strategy.tables}.\n"
        ),
        f"{len(layers)} tensors: {width_counts(layers)}.\n",
        "## Measured on the weights\n",
        markdown_table(("", "bits per weight", "MB", "SQNR", "cosine"), _measured_rows(layers)) + "\n",
        (
            "Bits per weight count codes, scales and zero points. Errors are of the stored values. "
            f"{_outputs(layers, decisions)}\n"
        ),
        *_whole_section(network, size),
        *_sensitivity_section(layers),
        "## Layers that fell back to a wider format\n",
        (markdown_table(("layer", "asked", "stored", "why"), fell) if fell else "None.") + "\n",
        *_input_section(layers),
        "## Kept in the source format, or raised by a rule\n",
        (markdown_table(("tensor", "stored as", "role", "reason"), kept) if kept else "None.") + "\n",
        "## How to make it again\n",
        f"```\n{command}\n```\n",
        "## Files\n",
        markdown_table(("file", "xxh3-128"), sorted(hashes.items())) + "\n",
        _OPENING,
    ]
    return "\n".join(parts).encode("utf-8", "replace")
