"""`arrowquant calibrate`: a bundled sample, or a diffusers pipeline folder with prompts, into a calibration file.

Reads prompts from a text file, one a line. Models are built from their folder alone: nothing is downloaded, and no code
of a model is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowquant_nb import samples
from arrowquant_nb.calibration.capture import capture
from arrowquant_nb.calibration.capture_file import write_calibration
from arrowquant_nb.calibration.channel_groups import weights_of
from arrowquant_nb.calibration.statistics import CalibrationSettings
from arrowquant_nb.errors import ConfigurationError, ModelNotFoundError
from arrowquant_nb.runs.model_calibration import calibrate, checked_output
from arrowquant_nb.storage.json_file import read_json_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.calibration.statistics import Calibration

__all__ = ["calibrate_model", "facts"]

MAX_PROMPTS_NBYTES = 16 << 20


def calibrate_model(
    model: str,
    output: str,
    prompts: str | None,
    steps: int,
    n_samples: int | None,
    seed: int,
    component: str | None,
    progress: Callable[[str, float], None],
) -> Calibration:
    """Calibrate a bundled sample along its own trajectories, or a pipeline folder on prompts or classes.

    Raises
    ------
    ModelNotFoundError
        No sample and no pipeline folder.
    ConfigurationError
        Prompts are missing, or do not belong there; the output's name does not end in .parquet.
    """
    path = checked_output(output)

    def say(fraction: float) -> None:
        progress("calibrating", fraction)

    if model in samples.names():
        if prompts is not None or component is not None:
            raise ConfigurationError(f"{model} is a bundled sample: it follows its own trajectories, without prompts")
        settings = CalibrationSettings(n_samples=n_samples or 128, seed=seed)
        found = capture(samples.runnable(model), settings, progress=say)
        write_calibration(path, found)
        return found
    folder = Path(model)
    if not (folder / "model_index.json").is_file():
        raise ModelNotFoundError(
            f"{model!r} is neither a bundled sample nor the folder of a diffusers pipeline (with model_index.json)"
        )
    _refuse_code(folder)
    return calibrate(
        _loaded(folder), _entries(prompts), steps,
        output=output, n_samples=n_samples, seed=seed, component=component, progress=say,
    )  # fmt: skip


def facts(calibration: Calibration, output: str) -> dict[str, Any]:
    """Return what was recorded, as JSON values."""
    first = next(iter(calibration.values()))
    return {
        "path": output,
        "layers": len(weights_of(calibration)),
        "inputs": len(calibration.inputs),
        "timesteps": first.n_steps,
        "trajectories": calibration.settings.n_samples,
        "unobserved": list(calibration.unobserved),
    }


def _refuse_code(folder: Path) -> None:
    """Refuse a pipeline whose class or components are code in its folder: diffusers would run it."""
    index = read_json_object(folder / "model_index.json")
    libraries = [value[0] for name, value in index.items() if isinstance(value, list) and value]
    own = [str(library) for library in libraries if library not in (None, "diffusers", "transformers")]
    if own or not isinstance(index.get("_class_name"), str):
        raise ConfigurationError(
            f"{folder}: names code of its own ({', '.join(map(repr, own[:3])) or 'no class'}), which is not run here; "
            "load the pipeline yourself and call arrowquant_nb.calibrate"
        )


def _loaded(folder: Path) -> Any:
    from diffusers import DiffusionPipeline  # noqa: PLC0415 - optional, and loads slowly
    from diffusers.utils import logging  # noqa: PLC0415 - as above

    logging.disable_progress_bar()  # its bar is drawn even into a file

    pipeline: Any = DiffusionPipeline
    try:
        pipeline = pipeline.from_pretrained(folder, local_files_only=True)
    except (AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:  # all that diffusers raises there
        raise ModelNotFoundError(
            f"{folder}: diffusers cannot load this pipeline: {str(error)[:300].rstrip('.')}; give a whole pipeline of "
            "a class that this diffusers knows"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _entries(prompts: str | None) -> list[Any] | None:
    """Return the lines of a file: whole numbers are classes, the rest prompts; None for a pipeline that needs none."""
    if prompts is None:
        return None
    path = Path(prompts)
    if not path.is_file():
        raise ModelNotFoundError(f"there is no file of prompts {prompts}")
    if path.stat().st_size > MAX_PROMPTS_NBYTES:
        raise ConfigurationError(f"{prompts}: more than {MAX_PROMPTS_NBYTES:,} bytes are no list of prompts")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ConfigurationError(f"{prompts}: holds no prompt; write one on each line")
    return [int(line) if line.isdecimal() else line for line in lines]
