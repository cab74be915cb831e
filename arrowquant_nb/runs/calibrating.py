"""Where a run's calibration comes from: a file that is given or lies beside the model, or the model's own trajectories.

Without any of them nothing is invented: the run goes on uncalibrated, and its result says why.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from arrowquant_nb import samples
from arrowquant_nb.calibration.cache import cache_folder, cache_limit, cached_capture
from arrowquant_nb.calibration.channel_groups import captures_of
from arrowquant_nb.calibration.files import find_calibration_file, load_calibration
from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings
from arrowquant_nb.core.time_groups import uniform_groups
from arrowquant_nb.errors import MetadataError, ModelNotFoundError, ShapeMismatchError
from arrowquant_nb.quantizers.hessian import LastFactor
from arrowquant_nb.quantizers.trials import LayerInputs
from arrowquant_nb.runs.locating import SAMPLE_PREFIX, LocatedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.samples import RunnableModel

USER_RULES = ("layer_bit_widths", "sensitive")
"""Rules of the plan by which the user, not the model's class, decides."""
_NAMED = 3
NONE = "none"
"""Given as `calibration`, switches it off."""


@dataclass(frozen=True)
class CalibrationSource:
    """What a run would be calibrated on, found without running anything."""

    description: str
    """In plain words, for the plan and the result."""
    sample: str | None = None
    """Bundled model whose own trajectories are followed."""
    file: Path | None = None
    """Calibration file."""
    given: str | None = None
    """What the user asked for, as a later run must be told it; None for the default."""

    @property
    def word(self) -> str | None:
        """What was given, as a command beside the file says it."""
        return self.given if self.file is None or self.given is None else self.file.name

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self.sample is not None or self.file is not None


def find_source(
    located: LocatedModel, config: DiffusionQuantConfig, given: str | Path | None = None
) -> CalibrationSource:
    """Say what a run over `located` would be calibrated on.

    Parameters
    ----------
    located, config
        The model and the run's settings.
    given
        A calibration file, or "none" to go without; None looks beside the model, then whether it can be run here.

    Raises
    ------
    ModelNotFoundError
        There is no such file.
    ConfigurationError
        Several calibration files lie beside the model.

    """
    if given is not None and str(given) == NONE:
        return CalibrationSource("calibration is switched off", given=NONE)
    sample = located.argument.removeprefix(SAMPLE_PREFIX) if located.argument.startswith(SAMPLE_PREFIX) else None
    beside = find_calibration_file(located.path if located.path.is_dir() else located.path.parent)
    file = Path(given) if given is not None else beside
    if file is not None:
        if not file.is_file():
            raise ModelNotFoundError(f"there is no calibration file {file}")
        named = None if given is None else str(file.resolve())
        return CalibrationSource(f"calibration file {file.name}", sample, file, named)
    if sample is not None:
        return CalibrationSource(own_trajectories(config.calibration_samples, config.seed), sample)
    return CalibrationSource("there is no calibration file beside the model, and the model cannot be run here")


def own_trajectories(n: int, seed: int) -> str:
    """Say that a model is followed along its own trajectories."""
    return f"{n} trajectories of the model itself, seed {seed}"


@dataclass(frozen=True, eq=False)
class RunCalibration:
    """What a run knows of its layers' inputs."""

    source: CalibrationSource
    """Where it comes from."""
    statistics: Calibration | None = None
    """None without calibration."""
    reused: bool = False
    """Taken from the cache."""
    warnings: tuple[str, ...] = ()
    """What went wrong with the cache, for the result."""
    _inputs: dict[str, LayerInputs] = field(default_factory=dict)
    _factors: LastFactor = field(default_factory=LastFactor)

    @property
    def hash(self) -> str:
        """Hash of the statistics, "" without."""
        return "" if self.statistics is None else self.statistics.data_hash

    def inputs(self, name: str, rows: int, columns: int, n_groups: int) -> LayerInputs | None:
        """Return the inputs of a layer, None where calibration did not see it.

        Parameters
        ----------
        name, rows, columns
            The weight and its matrix view.
        n_groups
            Timestep groups, at most, whose output is measured apart.

        """
        captures = () if self.statistics is None else captures_of(self.statistics, name, rows, columns)
        if not captures:
            return None
        if name not in self._inputs:
            n_steps = captures[0].n_steps
            slices = tuple(slice(start, stop) for start, stop in uniform_groups(n_steps, min(n_groups, n_steps)))
            self._inputs[name] = LayerInputs.of_groups(
                tuple(LayerInputs(c.hessian, c.held_out, slices, factors=self._factors) for c in captures)
            )
        return self._inputs[name]

    def facts(self) -> dict[str, object]:
        """Return plain values that the same model and settings always give: for the manifest and the result."""
        found = self.statistics
        facts = {} if found is None else {"settings": found.settings.to_dict(), "kind": found.source, "hash": self.hash}
        return {"source": self.source.description, **facts}

    def record(self) -> dict[str, object]:
        """Return the same with how it was come by, for run.json."""
        return {**self.facts(), "given": self.source.given, "reused": self.reused, "warnings": list(self.warnings)}


def _checked(file: Path, found: Calibration, tasks: Sequence[LayerTask]) -> tuple[str, ...]:
    """Refuse a file of another model before anything is quantized; say which layers it does not know."""
    wanted = [t for t in tasks if not t.kept]
    try:
        known = {t.name for t in wanted if captures_of(found, t.name, t.rows, t.columns)}
    except ShapeMismatchError as error:
        raise ShapeMismatchError(f"{file}: {error}") from error
    if wanted and not known:
        raise MetadataError(
            f"{file} knows none of the {len(wanted)} layers that are quantized, such as {wanted[0].name!r}; its first "
            f"is {next(iter(found))!r}: it is of another model, calibrate this one"
        )
    missed = [t.name for t in wanted if t.name not in known]
    if not missed:
        return ()
    more = ", ..." if len(missed) > _NAMED else ""
    return (f"{file.name} has no inputs of {len(missed)} layers: {', '.join(missed[:_NAMED])}{more}; not calibrated.",)


def calibrate(
    source: CalibrationSource,
    tasks: Sequence[LayerTask],
    config: DiffusionQuantConfig,
    progress: Callable[[float], None] | None = None,
) -> RunCalibration:
    """Read or record the inputs of the layers that are to be quantized.

    Raises
    ------
    ArrowQuantError
        The calibration file cannot be used, or is of another model; the message names file, layer and fix.

    """
    if not source:
        return RunCalibration(source)
    settings = CalibrationSettings(n_samples=config.calibration_samples, seed=config.seed)
    model: RunnableModel | None = None if source.sample is None else samples.runnable(source.sample)
    if source.file is not None:
        found = load_calibration(source.file, model, settings, progress=progress)
        return RunCalibration(source, found, warnings=_checked(source.file, found, tasks))
    if model is None:
        raise AssertionError(source)
    # A layer that the user keeps is observed all the same, so that keeping it redoes no other.
    wanted = {t.name for t in tasks if not t.kept or t.rule in USER_RULES}
    layers = [name for name in model.layers() if name in wanted]
    if not layers:
        return RunCalibration(CalibrationSource("no layer that is quantized can be observed"))
    folder, limit = cache_folder(os.environ), cache_limit(os.environ)
    done = cached_capture(model, settings, layers, progress, folder=folder, limit=limit)
    return RunCalibration(source, done.calibration, done.reused, done.warnings)
