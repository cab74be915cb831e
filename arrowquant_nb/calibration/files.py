"""Calibration files: which one lies beside a model, and what kind it is: records of inputs, or a whole calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from arrowquant_nb.calibration.capture_file import is_capture, read_calibration
from arrowquant_nb.calibration.record_files import SUFFIXES
from arrowquant_nb.calibration.records import calibrate_on_records
from arrowquant_nb.errors import (
    ConfigurationError,
    ModelNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from arrowquant_nb.calibration.capture import Progress
    from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings
    from arrowquant_nb.samples.runnable import RunnableModel

STEM: Final = "calibration"


def find_calibration_file(folder: Path) -> Path | None:
    """Return the calibration file beside a model, None where there is none.

    Raises
    ------
    ConfigurationError
        There are several; which one is meant must be said.

    """
    found = [folder / f"{STEM}{suffix}" for suffix in SUFFIXES if (folder / f"{STEM}{suffix}").is_file()]
    if len(found) > 1:
        raise ConfigurationError(f"{folder} has {' and '.join(p.name for p in found)}; keep one, or say which to use")
    return found[0] if found else None


def load_calibration(
    path: Path,
    model: RunnableModel | None = None,
    settings: CalibrationSettings | None = None,
    layers: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Read a calibration file of either kind.

    Parameters
    ----------
    path
        A capture of ours (`*.parquet`), or records (`*.jsonl`, `*.parquet`, `*.arrow`), which need a model to run.
    model, settings, layers, progress
        Of `calibrate_on_records`; a capture has settings of its own.

    Raises
    ------
    ModelNotFoundError
        There is no such file.
    ConfigurationError
        Records, but no model that runs.
    MetadataError, ShapeMismatchError, ValidationError
        The file cannot be used; the message names file and record or layer.

    """
    if not path.is_file():
        raise ModelNotFoundError(f"there is no calibration file {path}")
    if is_capture(path):
        return read_calibration(path)
    if model is None:
        raise ConfigurationError(
            f"{path} holds model inputs, and this model cannot be run here: give layer inputs as written by "
            "write_calibration, or remove the file to go on without calibration"
        )
    return calibrate_on_records(model, path, settings, layers, progress)
