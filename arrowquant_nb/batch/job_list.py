"""What a batch is to do: a YAML file with a grid of notebook parameters, read and checked before anything runs.

    output: overnight            # folder; default: the file's name without its ending
    at_once: 2                   # jobs that run at the same time
    parameters: {n_samples: 0}   # for every job
    grid:                        # every combination is a job
      model: [digits-dit, docs-mlm]
      profile: [edge, local]
    jobs:                        # and these
      - {model: plucks-dit, bit_width: 8}

Paths are relative to the folder that the command is started in. Executes nothing and writes nothing.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from arrowquant_nb import __version__
from arrowquant_nb.batch.notebook_run import packaged_notebook
from arrowquant_nb.batch.parameters import check_parameters, read_notebook
from arrowquant_nb.config.sources import ENVIRONMENT_PREFIX, did_you_mean, read_yaml, shown
from arrowquant_nb.errors import ConfigurationError

__all__ = ["Job", "JobList", "read_jobs"]

MAX_JOBS: Final = 1000
MAX_AT_ONCE: Final = 256
_KEYS: Final = ("notebook", "output", "at_once", "parameters", "grid", "jobs")
_NAME_LENGTH: Final = 80
_OUTPUT: Final = "output"
"""The parameter that names a notebook's model folder; a batch gives every job its own."""


@dataclass(frozen=True)
class Job:
    """One execution of the notebook."""

    name: str
    """Unique in its list; a folder of this name holds what the job makes."""
    parameters: Mapping[str, object]
    """As the notebook is given them, the model folder left out."""
    key: str
    """Hash of all that decides what comes out: notebook, parameters, files they name, environment, version."""


@dataclass(frozen=True)
class JobList:
    """A checked batch."""

    notebook: Path
    output: Path
    at_once: int
    jobs: tuple[Job, ...]
    makes_models: bool
    """Whether the notebook takes the folder of a model as its parameter `output`."""


def read_jobs(path: Path, output: Path | None = None, at_once: int | None = None) -> JobList:
    """Read and check a batch.

    Parameters
    ----------
    path : Path
        The YAML file, see the module's text.
    output, at_once : optional
        Stand in for what the file says.

    Raises
    ------
    ConfigurationError, ModelNotFoundError
        Unreadable YAML, an unknown key or parameter, a wrong type, no job, two equal jobs, or no such notebook; the
        message names the file and the line or the parameter.
    """
    values, lines = read_yaml(path)
    for key in values:
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS) or f" It takes: {', '.join(_KEYS)}."
            raise ConfigurationError(f"{path}, line {lines[key]}: unknown key {key!r}.{hint}")
    notebook = _notebook(path, values.get("notebook", "02_quantize"))
    given = [*_combinations(path, values)]
    if not given:
        raise ConfigurationError(f"{path}: holds no job; give a `grid` of parameters, or a list of `jobs`")
    for parameters in given:
        if _OUTPUT in parameters:
            raise ConfigurationError(f"{path}: leave out the parameter 'output'; every job gets a folder of its own")
        known = check_parameters(notebook, parameters)
    names = _names(path, given, _mapping(path, values, "parameters"))
    jobs = tuple(
        Job(name, parameters, _key(notebook, parameters)) for name, parameters in zip(names, given, strict=True)
    )
    place = Path(_text(path, values.get("output", path.stem), "output"))
    return JobList(
        notebook, output or place, _at_once(path, at_once or values.get("at_once", 2)), jobs, _OUTPUT in known
    )


def _notebook(path: Path, value: object) -> Path:
    text = _text(path, value, "notebook")
    return Path(text) if text.endswith(".ipynb") else packaged_notebook(text)


def _text(path: Path, value: object, key: str) -> str:
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise ConfigurationError(f"{path}: {key} = {shown(value)} is refused; it must be the name of a file or folder")


def _at_once(path: Path, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_AT_ONCE:
        return value
    raise ConfigurationError(f"{path}: at_once = {shown(value)} is refused; it must be from 1 to {MAX_AT_ONCE}")


def _mapping(path: Path, values: Mapping[str, object], key: str) -> dict[str, object]:
    value = values.get(key)
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    raise ConfigurationError(f"{path}: {key} must be a mapping of parameters, not {shown(value)}")


def _combinations(path: Path, values: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """Yield the parameters of each job: those for all, then the grid's in its order, then the single jobs'."""
    common, grid = _mapping(path, values, "parameters"), _mapping(path, values, "grid")
    axes = {name: axis if isinstance(axis, list) else [axis] for name, axis in grid.items()}
    n_jobs = 1
    for name, axis in axes.items():
        if not axis:
            raise ConfigurationError(f"{path}: grid: {name!r} has no value; give one or more, or leave it out")
        n_jobs *= len(axis)
        if n_jobs > MAX_JOBS:
            raise ConfigurationError(f"{path}: the grid makes more than {MAX_JOBS} jobs; split it into several files")
    single = values.get("jobs") or []
    if not isinstance(single, list) or not all(isinstance(job, dict) for job in single):
        raise ConfigurationError(f"{path}: jobs must be a list of mappings of parameters, not {shown(single)}")
    if axes:
        for combination in itertools.product(*axes.values()):
            yield common | dict(zip(axes, combination, strict=True))
    for job in single:
        yield common | job


def _names(path: Path, given: list[dict[str, object]], common: Mapping[str, object]) -> list[str]:
    """Name each job by what it does not share with all others; two jobs that do the same are refused."""
    seen: dict[str, int] = {}
    names: list[str] = []
    for i, parameters in enumerate(given):
        text = json.dumps(parameters, sort_keys=True, default=str)
        if text in seen:
            raise ConfigurationError(f"{path}: jobs {seen[text] + 1} and {i + 1} have the same parameters; keep one")
        seen[text] = i
        own = {key: value for key, value in parameters.items() if key not in common or common[key] != value}
        words = "_".join(_word(key, value) for key, value in own.items()) or "job"
        names.append(words[:_NAME_LENGTH])
    doubled = {name.lower() for name in names if sum(other.lower() == name.lower() for other in names) > 1}
    marks = [hashlib.sha256(text.encode()).hexdigest()[:8] for text in seen]
    return [f"{name}-{mark}" if name.lower() in doubled else name for name, mark in zip(names, marks, strict=True)]


def _word(key: str, value: object) -> str:
    """Return a part of a file name: texts as they are, of paths the last part, all else with its name."""
    text = Path(value).name if isinstance(value, str) else f"{key}-{value}"
    return re.sub(r"[^A-Za-z0-9.+=-]+", "-", text).strip("-.") or key


def _key(notebook: Path, parameters: Mapping[str, object]) -> str:
    cells = [cell["source"] for cell in read_notebook(notebook)["cells"] if cell.get("cell_type") == "code"]
    threads = ENVIRONMENT_PREFIX + "NUM_THREADS"
    facts = {
        "version": __version__,
        "cells": cells,
        "parameters": dict(parameters),
        "files": {key: _fingerprint(value) for key, value in parameters.items() if isinstance(value, str)},
        # A number of threads changes no byte of a model.
        "environment": {k: v for k, v in os.environ.items() if k.startswith(ENVIRONMENT_PREFIX) and k != threads},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _fingerprint(text: str) -> list[tuple[str, int, int]]:
    """Return name, size and time of the files that a parameter names, if it names any; contents are not read.

    Of a folder the files in it and in its folders, which is as deep as a pipeline's components lie.
    """
    try:
        path = Path(text)
        found = [path, *path.glob("*"), *path.glob("*/*")] if path.exists() else []
        files = sorted(p for p in found if p.is_file())
        return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    except (OSError, ValueError):  # no name that a file could have, or one that is just being changed
        return []
