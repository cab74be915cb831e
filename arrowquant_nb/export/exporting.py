"""`export_model`: opens a model, stages the output, calls the room of the target and says what it could not keep."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.export.diffusers_folder import write_folder
from arrowquant_nb.export.float_folder import write_floats
from arrowquant_nb.export.staging import RECORD_NAME, check_output, staged_folder
from arrowquant_nb.storage.durable import write_file
from arrowquant_nb.storage.quantized import open_quantized

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.export.report import ExportReport

__all__ = ["TARGETS", "export_model"]

TARGETS = ("safetensors", "diffusers")
_FOLDERS = {"safetensors": write_floats, "diffusers": write_folder}
_log = logging.getLogger("arrowquant_nb")


def export_model(
    model: str | Path,
    target: str,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress_callback: Callable[[str, float], None] | None = None,
) -> ExportReport:
    """Write a quantized model in the format of another tool.

    Parameters
    ----------
    model : a finished model folder of ours.
    target : "safetensors" (a folder of floats, dtype and layout of the source) or "diffusers" (packed codes with
        `quantization_config`; loads with our backend).
    output : a new or empty folder.
    overwrite : replace an earlier export.
    progress_callback : called with (message, fraction), fraction rising to exactly 1.0.

    Returns
    -------
    ExportReport
        What each tensor became. Its `warnings` are logged too (logger `arrowquant_nb`): what the target cannot hold
        and what was rounded again.

    Raises
    ------
    ConfigurationError
        An unknown target.
    ModelNotFoundError, ValidationError, MetadataError
        No such model, damaged, or of a newer version.
    OutputError
        The output exists or cannot be written; nothing is left under its name.
    """
    if target not in TARGETS:
        raise ConfigurationError(f"there is no export target {str(target)[:40]!r}; there are: {', '.join(TARGETS)}")
    place = Path(output)
    check_output(place, Path(model), "", overwrite)
    with open_quantized(model) as opened, staged_folder(place.resolve()) as folder:
        report = replace(_FOLDERS[target](opened, folder, progress_callback), output=place.name)
        write_file(folder / RECORD_NAME, (json.dumps(report.to_record(), indent=1) + "\n").encode())
    if progress_callback is not None:
        progress_callback("finished", 1.0)
    for line in report.warnings:
        _log.warning("%s: %s", target, line)
    return replace(report, output=str(output))
