"""A recorded run once more, compared file by file: the proof that a model can be made again."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowquant_nb.comparisons import ReproductionReport
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import MetadataError, ModelNotFoundError
from arrowquant_nb.runs.control import Progress
from arrowquant_nb.runs.model_choice import ModelChoice
from arrowquant_nb.runs.quantization import quantize_model
from arrowquant_nb.runs.record import versions
from arrowquant_nb.storage.durable import emptied_on_failure, hash_file, refuse_used
from arrowquant_nb.storage.manifest import MANIFEST_NAME, read_manifest
from arrowquant_nb.storage.output import RUN_NAME

if TYPE_CHECKING:
    from collections.abc import Callable


_RECORD_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "component": (str, type(None)),
    "variant": (str, type(None)),
    "config": (dict,),
    "versions": (dict,),
    "inputs": (dict,),
    "calibration": (dict,),
}


def reproduce(
    folder: str | Path,
    output: str | Path | None = None,
    progress_callback: Callable[[str, float], None] | None = None,
) -> ReproductionReport:
    """Make a model again from its `run.json` and compare the two, byte for byte.

    Parameters
    ----------
    folder : a finished model.
    output : empty or new folder that keeps the second run; by default it is thrown away.
    progress_callback : called with (message, fraction).

    Returns
    -------
    ReproductionReport
        Which files are identical, different, missing or extra, and what has changed since: versions, source tensors.

    Raises
    ------
    ModelNotFoundError, MetadataError, OutputError
        No finished run, a damaged record, or an output that is not empty.
    """
    first = Path(folder)
    record = _read_record(first)
    config = DiffusionQuantConfig.from_dict(record["config"])
    listeners = () if progress_callback is None else (Progress(progress_callback),)
    with contextlib.ExitStack() as stack:
        if output is None:
            second = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="arrowquant-"))) / "model"
        else:
            second = Path(output)
            refuse_used(second)
            stack.enter_context(emptied_on_failure(second))
        given = record["calibration"].get("given")
        choice = ModelChoice(record["model"], record["component"], record["variant"], True, given)
        quantize_model(choice, second, config, listeners=listeners)
        return _compare(first, second, (*_version_changes(record), *_input_changes(record, second)))


def _version_changes(record: dict[str, Any]) -> list[str]:
    now = versions()
    return [f"{name} was {old}, is {now.get(name)}" for name, old in record["versions"].items() if now.get(name) != old]


def _input_changes(record: dict[str, Any], second: Path) -> list[str]:
    now = json.loads((second / RUN_NAME).read_bytes())["inputs"]
    names = [name for name, old in record["inputs"].items() if now.get(name) != old] + sorted(
        now.keys() - record["inputs"]
    )
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{len(names)} source tensors are not what they were: {shown}"] if names else []


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RUN_NAME
    if not path.is_file():
        raise ModelNotFoundError(f"{folder} has no {RUN_NAME}: only a finished run of arrowquant_nb can be reproduced")
    try:
        record = json.loads(path.read_bytes())
        found = {k: record[k] for k in _RECORD_TYPES}
        for key, kinds in _RECORD_TYPES.items():
            if not isinstance(found[key], kinds):
                raise TypeError(  # noqa: TRY301 - one message for all damage
                    f"{key!r} is {type(found[key]).__name__}"
                )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MetadataError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return found


def _files(folder: Path) -> dict[str, Path]:
    """Return the files of a model; what else a user keeps in its folder is not compared."""
    names = [*read_manifest(folder).files, MANIFEST_NAME]
    return {name: folder / name for name in sorted(names) if (folder / name).is_file()}


def _compare(first: Path, second: Path, changes: tuple[str, ...]) -> ReproductionReport:
    ours, theirs = _files(first), _files(second)
    shared = [n for n in ours if n in theirs]
    equal = {n: hash_file(ours[n]) == hash_file(theirs[n]) for n in shared}
    return ReproductionReport(
        folder=str(first),
        identical=tuple(n for n in shared if equal[n]),
        different=tuple(n for n in shared if not equal[n]),
        missing=tuple(n for n in ours if n not in theirs),
        extra=tuple(n for n in theirs if n not in ours),
        environment_changes=changes,
    )
