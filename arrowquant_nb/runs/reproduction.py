"""A recorded run once more, compared file by file: the proof that a model can be made again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowquant_nb.comparisons import ReproductionReport
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import MetadataError, ModelNotFoundError
from arrowquant_nb.runs.control import EVENTS_NAME
from arrowquant_nb.runs.quantization import quantize_model
from arrowquant_nb.runs.record import RUN_NAME, versions
from arrowquant_nb.storage.durable import hash_file
from arrowquant_nb.storage.journal import JOURNAL_NAME
from arrowquant_nb.storage.output import LOCK_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.events import Event

# Times and hosts live in these three; byte identity is promised for every other file.
NOT_COMPARED = (RUN_NAME, EVENTS_NAME, JOURNAL_NAME, LOCK_NAME)

_RECORD_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "component": (str, type(None)),
    "variant": (str, type(None)),
    "config": (dict,),
    "versions": (dict,),
}


def reproduce(
    folder: str | Path, output: str | Path | None = None, listener: Callable[[Event], None] | None = None
) -> ReproductionReport:
    """Run a model's `run.json` again and compare; see `arrowquant_nb.reproduce`."""
    first = Path(folder)
    record = _read_record(first)
    config = DiffusionQuantConfig.from_dict(record["config"])
    changes = tuple(
        f"{name} was {old}, is {versions().get(name)}"
        for name, old in record["versions"].items()
        if versions().get(name) != old
    )
    listeners = () if listener is None else (listener,)
    with tempfile.TemporaryDirectory(
        prefix="arrowquant-", dir=None if output is None else Path(output).parent
    ) as scratch:
        second = Path(scratch) / "model" if output is None else Path(output)
        quantize_model(
            record["model"], second, config, listeners=listeners, component=record["component"],
            variant=record["variant"], requantize=True,
        )  # fmt: skip
        return _compare(first, second, changes)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RUN_NAME
    if not path.is_file():
        raise ModelNotFoundError(f"{folder} has no {RUN_NAME}: only a finished run of arrowquant_nb can be reproduced")
    try:
        record = json.loads(path.read_bytes())
        found = {k: record[k] for k in ("model", "component", "variant", "config", "versions")}
        for key, kinds in _RECORD_TYPES.items():
            if not isinstance(found[key], kinds):
                raise TypeError(  # noqa: TRY301 - one message for all damage
                    f"{key!r} is {type(found[key]).__name__}"
                )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MetadataError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return found


def _files(folder: Path) -> dict[str, Path]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path for name, path in sorted(found.items()) if name not in NOT_COMPARED}


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
