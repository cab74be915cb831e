"""`export_model`: opens a model, stages the output, calls the room of the target and says what it could not keep."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arrowquant_nb.errors import ConfigurationError, QuantizationError
from arrowquant_nb.export.comfy_file import write_comfy
from arrowquant_nb.export.compressed_tensors import write_compressed_tensors
from arrowquant_nb.export.diffusers_folder import write_folder
from arrowquant_nb.export.float_folder import write_floats
from arrowquant_nb.export.gguf_file import write_gguf
from arrowquant_nb.export.options import ExportOptions
from arrowquant_nb.export.other_components import copy_components, missing_components
from arrowquant_nb.export.staging import RECORD_NAME, check_output, staged_file, staged_folder
from arrowquant_nb.runs.source_layout import component_of
from arrowquant_nb.storage.durable import write_file
from arrowquant_nb.storage.quantized import open_quantized

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.export.report import ExportReport
    from arrowquant_nb.storage.quantized import QuantizedModel

    Progress = Callable[[str, float], None] | None
    Writer = Callable[[QuantizedModel, Path, ExportOptions, Progress], ExportReport]

__all__ = ["TARGETS", "export_model"]

_WRITERS: Final[dict[str, Writer]] = {
    "safetensors": write_floats,
    "diffusers": write_folder,
    "gguf": write_gguf,
    "comfy": write_comfy,
    "compressed-tensors": write_compressed_tensors,
}
_SUFFIXES: Final = {"gguf": ".gguf", "comfy": ".safetensors"}
_WITH_PIPELINE: Final = ("safetensors", "diffusers")
TARGETS: Final = tuple(_WRITERS)
"""What a model can be exported to."""
_log = logging.getLogger("arrowquant_nb")


def export_model(
    model: str | Path,
    target: str,
    output: str | Path,
    *,
    weight_type: str | None = None,
    convolutions: bool = False,
    pipeline: str | Path | None = None,
    min_sqnr_db: float | None = 15.0,
    overwrite: bool = False,
    progress_callback: Callable[[str, float], None] | None = None,
) -> ExportReport:
    """Write a quantized model in the format of another tool.

    Parameters
    ----------
    model : a finished model folder of ours.
    target : "safetensors" (a folder of floats, dtype and layout of the source), "diffusers" (packed codes with
        `quantization_config`; loads with our backend), "gguf" (one file; needs the extra `export`), "comfy" (one
        safetensors file for ComfyUI) or "compressed-tensors" (a folder for transformers and vLLM; text models).
    output : a new or empty folder, or a new file whose name ends as the target's do (.gguf, .safetensors).
    weight_type : gguf: "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q2_K" or "Q6_K" for tensors of at most its bits; by default
        codes are taken over where a type decodes them alike, and the rest goes to a type of more bits. comfy:
        "int8_tensorwise" (default) or "convrot_w4a4". compressed-tensors: "W4A16", "W8A16" or "W8A8"; by default codes
        are taken over, else W8A16.
    convolutions : gguf only: quantized convolutions as blocks too, as matrices with `comfy.gguf.orig_shape`.
    pipeline : safetensors and diffusers: the pipeline's folder that the model was quantized from; its other components
        are copied beside it, so that the output loads as a pipeline.
    min_sqnr_db : the least signal over error, against the dequantized values, that a tensor may keep where it has to be
        rounded again; None = whatever comes out.
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
        An unknown target, an option of another target, or a package that is not installed.
    ModelNotFoundError, ValidationError, MetadataError
        No such model, damaged, or of a newer version.
    QuantizationError
        A tensor that would keep less than `min_sqnr_db`; nothing is left under the output's name.
    OutputError
        The output exists or cannot be written; nothing is left under its name.
    """
    if target not in TARGETS:
        raise ConfigurationError(f"there is no export target {str(target)[:40]!r}; there are: {', '.join(TARGETS)}")
    if pipeline is not None and target not in _WITH_PIPELINE:
        raise ConfigurationError(
            f"{target} holds no pipeline: leave pipeline out, or export to safetensors or diffusers"
        )
    options = ExportOptions(weight_type, convolutions)
    place = Path(output)
    suffix = _SUFFIXES.get(target, "")
    check_output(place, Path(model), suffix, overwrite)
    stage = staged_file if suffix else staged_folder
    with open_quantized(model) as opened, stage(place.resolve()) as temporary:
        report = replace(_WRITERS[target](opened, temporary, options, progress_callback), output=place.name)
        _refuse_ruined(report, min_sqnr_db)
        if not suffix:
            remarks = _complete(temporary, component_of(opened), pipeline)
            report = replace(report, remarks=(*report.remarks, *remarks))
            write_file(temporary / RECORD_NAME, (json.dumps(report.to_record(), indent=1) + "\n").encode())
    if progress_callback is not None:
        progress_callback("finished", 1.0)
    for line in report.warnings:
        _log.warning("%s: %s", target, line)
    return replace(report, output=str(output))


def _complete(folder: Path, component: str, pipeline: str | Path | None) -> tuple[str, ...]:
    """Copy a pipeline's other components where it is given; say what a folder of a pipeline lacks."""
    left = () if pipeline is None else copy_components(Path(pipeline), folder, component)
    missing = missing_components(folder) if component else ()
    remarks = (f"not copied from the pipeline: {', '.join(left)}",) if left else ()
    if not missing:
        return remarks
    alone = f"{component}/ alone; to load the folder as a pipeline it lacks {', '.join(missing)}"
    return (*remarks, f"holds {alone}: export with pipeline=ORIGINAL (--pipeline) to copy what the original has")


def _refuse_ruined(report: ExportReport, min_sqnr_db: float | None) -> None:
    """Raise QuantizationError where rounding again costs more than the user accepts."""
    least = -math.inf if min_sqnr_db is None else min_sqnr_db
    ruined = [t for t in report.rounded if t.sqnr_db is not None and t.sqnr_db < least]
    if ruined:
        shown = "; ".join(
            f"{t.name} {t.stored_as} -> {t.written_as} {t.sqnr_db:.1f} dB ({t.reason})" for t in ruined[:5]
        )
        more = f"; and {len(ruined) - 5} more" if len(ruined) > 5 else ""
        raise QuantizationError(
            f"{len(ruined)} tensors would keep less than {min_sqnr_db} dB of their dequantized values: {shown}{more}. "
            "Choose another target or weight_type, or accept it with a lower min_sqnr_db (--min-sqnr-db)"
        )
