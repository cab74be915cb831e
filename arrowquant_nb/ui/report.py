"""A run as one HTML file that can be mailed: it needs no network, and reads without scripts and on paper.

plotly's script stands in it once; every live figure has a still twin. No path, user or host name enters the page.
"""

import datetime as dt
import json
import os
from html import escape
from pathlib import Path
from typing import Any, Final

from arrowquant_nb import __version__, result_card
from arrowquant_nb.errors import ArrowQuantError, ConfigurationError, OutputError
from arrowquant_nb.results import QuantizationResult
from arrowquant_nb.runs.locating import SAMPLE_PREFIX
from arrowquant_nb.runs.record import versions
from arrowquant_nb.runs.recorded import read_result
from arrowquant_nb.storage.manifest import MANIFEST_NAME
from arrowquant_nb.storage.output import RUN_NAME
from arrowquant_nb.storage.quantized import open_quantized
from arrowquant_nb.tables import html_table
from arrowquant_nb.ui.report_sections import heading, sections
from arrowquant_nb.ui.sample_pair import SamplePair, draw_pair

__all__ = ["report"]

_MARK: Final = '<meta name="generator" content="arrowquant_nb report'
"""By which a report is known again, so that nothing else is overwritten."""
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; media-src data:"
)
"""For the browser: nothing in the page may reach another host."""
_STYLE: Final = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1b1b1b; --line: #d5d8dc; --soft: #f4f5f6 }
@media (prefers-color-scheme: dark) { :root { --ground: #111111; --ink: #e8eaed; --line: #3c4046; --soft: #1c1f22 } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2em auto;
  max-width: 1100px; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.15em; margin: 2em 0 0.5em }
table { border-collapse: collapse; margin: 0.7em 0; display: block; overflow-x: auto; font-size: 13px }
caption, th, td { text-align: left } th, td { border-bottom: 1px solid var(--line); padding: 2px 10px 2px 0 }
pre { background: var(--soft); padding: 0.8em; overflow-x: auto; white-space: pre-wrap }
.verdict { font-size: 1.15em } .figures { display: flex; flex-wrap: wrap; gap: 0.5em 2em; margin: 1em 0; padding: 0 }
.figures div { border-left: 3px solid #0072b2; padding-left: 0.7em } .figures dd { margin: 0; font-weight: 600 }
svg { max-width: 100%; height: auto } figure { display: inline-block; margin: 0.5em 1.5em 0.5em 0 }
@media print { body { margin: 0; max-width: none } h2 { break-after: avoid } details > summary { list-style: none } }
"""
_SAMPLES: Final = {"audio": 4}
"""Samples drawn of a modality; of others 8. Spectrograms have many pixels."""


def report(result: QuantizationResult | str | Path, path: str | Path) -> Path:
    """Write a finished run as one self-contained HTML file.

    Parameters
    ----------
    result : QuantizationResult, str or Path
        What a run returned, or the folder of its model.
    path : str or Path
        The file, named *.html; an earlier report there is replaced, any other file is not.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ModelNotFoundError, ValidationError, MetadataError
        The folder holds no finished model.
    ConfigurationError, OutputError
        The name does not end in .html; the file is not a report, or cannot be written.
    """
    found = result if isinstance(result, QuantizationResult) else read_result(result)
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigurationError(f"{target}: a report is named *.html; add the ending")
    _refuse_to_overwrite(target)
    page = report_html(found)
    part = target.with_name(target.name + ".part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(target)
    except (OSError, ValueError) as error:
        raise OutputError(f"{target}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return target


def report_html(result: QuantizationResult) -> str:
    """Return the page of `report`; draws samples where the model is a bundled one whose folder is still there."""
    pair, no_samples = _samples(result)
    parts = [
        f"{heading(i, title)}\n{content}" for i, (title, content) in enumerate(sections(result, pair, no_samples), 1)
    ]
    title = escape(f"{result.model}, INT{result.bit_width}")
    shown = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in result_card.figures(result))
    warnings = "".join(f"<p><b>Warning.</b> {escape(result_card.without_folders(w))}</p>" for w in result.warnings)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{_MARK} {__version__}">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style>\n'
        "</head><body>\n"
        f"<h1>{title}</h1>\n{_about(result)}\n"
        f'<p class="verdict" role="status">{escape(result_card.verdict(result))}</p>\n'
        f'<dl class="figures">{shown}</dl>\n{warnings}{"".join(parts)}\n</body></html>\n'
    )


def _about(result: QuantizationResult) -> str:
    """Say what made the page, in one small table."""
    config = result_card.settings(result)
    used = ", ".join(f"{name} {number}" for name, number in versions().items() if name != "arrowquant_nb")
    rows = [
        ("Date", dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("arrowquant_nb", f"{__version__} ({used})"),
        ("Modality", f"{result.modality}: {result.modality_reason}"),
        ("Strategy", result.strategy.reason),
        ("Seed", "-" if config is None else str(config.seed)),
        ("Hash of the settings", "-" if config is None else config.content_hash()),
        ("Hash of the model", _model_hash(result) or "-"),
    ]
    return html_table(("", ""), [(label, result_card.without_folders(value)) for label, value in rows])


def _model_hash(result: QuantizationResult) -> str:
    """Return the seal of the model's manifest, "" where the folder is gone."""
    return str(_json_of(result, MANIFEST_NAME).get("sha256", ""))[:16]


def _json_of(result: QuantizationResult, name: str) -> dict[str, Any]:
    """Return a file of the model's folder, nothing where it is not at hand."""
    if result.quantized_path is None:
        return {}
    try:
        found = json.loads(Path(result.quantized_path, name).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _samples(result: QuantizationResult) -> tuple[SamplePair | None, str]:
    """Draw from the original and the quantized model, or say why not."""
    source = _json_of(result, RUN_NAME).get("model")
    if result.quantized_path is None or source is None:
        return None, "The model's folder is not at hand, so nothing was drawn from it."
    if not str(source).startswith(SAMPLE_PREFIX):
        return None, "Samples are drawn from the models that come with the package; this is another one."
    name = str(source).removeprefix(SAMPLE_PREFIX)
    label = f"INT{result.bit_width}, {result.payload_nbytes / 1e6:.1f} MB"
    try:
        with open_quantized(result.quantized_path) as model:
            return draw_pair(
                name, model, label, _SAMPLES.get(result.modality, 8), int(result.config.get("seed", 0))
            ), ""
    except (ArrowQuantError, LookupError, ValueError) as error:
        return None, f"Nothing could be drawn: {result_card.without_folders(str(error))}"


def _refuse_to_overwrite(path: Path) -> None:
    try:
        if not os.path.lexists(path):
            return
        with path.open("rb") as stream:
            ours = _MARK.encode() in stream.read(1000)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not ours:
        raise OutputError(f"{path}: exists and is not a report, so it is not overwritten; choose another name")
