"""Calibrations kept by content: the same model and settings are run once.

An entry is addressed by the hash of weights, settings and version, and believed only when its own hashes hold. Says
in the result what was reused and what was wrong with an entry. Reads no environment: the folder is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arrowquant_nb.calibration.capture import capture, chosen_layers
from arrowquant_nb.calibration.files import read_calibration, write_calibration
from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings, calibration_key, model_hash
from arrowquant_nb.errors import ArrowQuantError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from arrowquant_nb.calibration.capture import Progress
    from arrowquant_nb.samples.runnable import RunnableModel


@dataclass(frozen=True, eq=False)
class CachedCalibration:
    """A calibration and how it was come by."""

    calibration: Calibration
    """The statistics."""
    reused: bool
    """Taken from the cache instead of running the model."""
    warnings: tuple[str, ...]
    """What was wrong with the cache, one sentence each; belongs into the run's report."""


def cache_folder(env: Mapping[str, str]) -> Path:
    """Return where calibrations are kept by default: `$XDG_CACHE_HOME` or `~/.cache`, then `arrowquant_nb/calibration`.

    A relative `XDG_CACHE_HOME` is ignored, as the XDG base directory specification demands.
    """
    base = Path(env.get("XDG_CACHE_HOME", ""))
    home = Path(env["HOME"]) if env.get("HOME") else Path.home()
    return (base if base.is_absolute() else home / ".cache") / "arrowquant_nb" / "calibration"


def cached_capture(
    model: RunnableModel,
    settings: CalibrationSettings | None = None,
    layers: Collection[str] | None = None,
    progress: Progress | None = None,
    *,
    folder: Path,
    source: str = "capture",
    run: Callable[..., Calibration] = capture,
) -> CachedCalibration:
    """Return the calibration of a model from the cache, or make and keep it.

    Parameters
    ----------
    model, settings, layers, progress
        See `capture`.
    folder
        The cache, see `cache_folder`; made where it is missing. Nothing in it is ever deleted here.
    source, run
        What makes the calibration: "capture" and `capture`, or "synthetic" and `calibrate_on_noise`.

    """
    settings = settings or CalibrationSettings()
    key = calibration_key(source, model_hash(model.weights), settings, chosen_layers(model, layers))
    path = folder / f"{key}.parquet"
    warnings: list[str] = []
    found = _trusted(path, key, warnings)
    if found is not None:
        if progress is not None:
            progress(1.0)
        return CachedCalibration(found, reused=True, warnings=())
    calibration = run(model, settings, layers, progress)
    try:
        write_calibration(path, calibration)
    except OutputError as error:
        warnings.append(f"The calibration is not kept for the next run: {error}.")
    return CachedCalibration(calibration, reused=False, warnings=tuple(warnings))


def is_kept(
    model: RunnableModel, settings: CalibrationSettings, layers: Collection[str] | None = None, *, folder: Path
) -> bool:
    """Tell whether `cached_capture` would find an entry, without reading it."""
    key = calibration_key("capture", model_hash(model.weights), settings, chosen_layers(model, layers))
    return (folder / f"{key}.parquet").is_file()


def _trusted(path: Path, key: str, warnings: list[str]) -> Calibration | None:
    """Return an entry whose hashes hold and that is what it is filed as; say what is wrong with another."""
    try:
        if not path.exists():
            return None
        found = read_calibration(path)
    except (ArrowQuantError, OSError) as error:
        warnings.append(f"A damaged cache entry was not used, and the model was run again: {error}.")
        return None
    if found.key != key:
        warnings.append(f"The cache entry {path} is another calibration than its name says; the model was run again.")
        return None
    return found
