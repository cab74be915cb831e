"""Calibrations kept by content: the same model and settings are run once.

An entry is addressed by the hash of weights, settings and version, and believed only when its own hashes hold. Says
in the result what was reused and what was wrong with an entry. Reads no environment: the folder is given.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arrowquant_nb.calibration.capture import capture, chosen_layers
from arrowquant_nb.calibration.capture_file import read_calibration, write_calibration
from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings, calibration_key, model_hash
from arrowquant_nb.errors import ArrowQuantError, ConfigurationError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from arrowquant_nb.calibration.capture import Progress
    from arrowquant_nb.samples.runnable import RunnableModel


DEFAULT_MB: Final = 2000.0
_ENTRY: Final = re.compile(r"[0-9a-f]{32}\.parquet")


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


def cache_limit(env: Mapping[str, str]) -> int:
    """Return how many bytes calibrations may take: `ARROWQUANT_NB_CACHE_MB` (10^6 bytes), by default 2,000.

    Raises
    ------
    ConfigurationError
        It is no number of megabytes.

    """
    text = env.get("ARROWQUANT_NB_CACHE_MB", "")
    try:
        megabytes = float(text) if text else DEFAULT_MB
    except ValueError:
        megabytes = math.nan
    if not 0 <= megabytes < math.inf:
        raise ConfigurationError(f"environment variable ARROWQUANT_NB_CACHE_MB: {text!r} is no number of megabytes")
    return int(megabytes * 1e6)


def evict(folder: Path, limit: int, keep: Path) -> None:
    """Delete the entries that were not used for longest until all take no more than `limit` bytes, never `keep`.

    Only files that are named as entries are looked at. What cannot be deleted stays: another run may be at it.
    """
    found = []
    for path in folder.glob("*.parquet"):
        with contextlib.suppress(OSError):  # deleted by another run meanwhile
            facts = path.stat()
            if _ENTRY.fullmatch(path.name) and path.is_file():
                found.append((facts.st_mtime_ns, path.name, facts.st_size, path))
    total = sum(nbytes for _, _, nbytes, _ in found)
    for _, _, nbytes, path in sorted(found):
        if total <= limit:
            return
        if path != keep:
            with contextlib.suppress(OSError):
                path.unlink()
                total -= nbytes


def cached_capture(
    model: RunnableModel,
    settings: CalibrationSettings | None = None,
    layers: Collection[str] | None = None,
    progress: Progress | None = None,
    *,
    folder: Path,
    limit: int = int(DEFAULT_MB * 1e6),
    source: str = "capture",
    run: Callable[..., Calibration] = capture,
) -> CachedCalibration:
    """Return the calibration of a model from the cache, or make and keep it.

    Parameters
    ----------
    model, settings, layers, progress
        See `capture`.
    folder
        The cache, see `cache_folder`; made where it is missing.
    limit
        Bytes that all entries may take, see `cache_limit`: those not used for longest go when a new one comes.
    source, run
        What makes the calibration: "capture" and `capture`, or "synthetic" and `calibrate_on_noise`.

    """
    settings = settings or CalibrationSettings()
    key = calibration_key(source, model_hash(model.weights), settings, chosen_layers(model, layers))
    path = folder / f"{key}.parquet"
    warnings: list[str] = []
    found = _trusted(path, key, warnings)
    if found is not None:
        with contextlib.suppress(OSError):  # a cache that may only be read still serves
            os.utime(path)
        if progress is not None:
            progress(1.0)
        return CachedCalibration(found, reused=True, warnings=())
    calibration = run(model, settings, layers, progress)
    try:
        write_calibration(path, calibration)
        evict(folder, limit, path)
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
