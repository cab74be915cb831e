"""The other components of a pipeline, copied beside the exported one, so that the pipeline loads as a whole.

Files only: nothing is executed, and what could be (pickles, Python files) is left behind and named.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.storage.durable import as_output_error, publish, temporary_path
from arrowquant_nb.storage.source_folder import SourceFolder, choose_component

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["copy_components", "missing_components"]

INDEX_NAME = "model_index.json"
NOT_COPIED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".onnx", ".py")
"""Pickles, weights of other frameworks, and code."""


def missing_components(folder: Path) -> tuple[str, ...]:
    """Return the components that an export's `model_index.json` lists and that have no sub-folder there."""
    index = SourceFolder.at(folder).json(INDEX_NAME) or {}
    return tuple(name for name in index if _is_component(index, name) and not (folder / name).is_dir())


def _is_component(index: Mapping[str, Any], name: str) -> bool:
    """Tell whether an entry is a component, [library, class]; one that the pipeline does without is [null, null]."""
    entry = index[name]
    return isinstance(entry, list) and any(part is not None for part in entry) and name.isidentifier()


def copy_components(pipeline: Path, folder: Path, component: str) -> tuple[str, ...]:
    """Copy the files of every other component into its sub-folder of `folder`; files that are there stay.

    Parameters
    ----------
    pipeline : the pipeline that the model was quantized from.
    folder : an export with `model_index.json`.
    component : the exported component, "" when the model was no pipeline's.

    Returns
    -------
    tuple of str
        Files that were left behind, relative to the pipeline.

    Raises
    ------
    ConfigurationError
        The model was no pipeline's, or `pipeline` is none or has no such component.
    ModelNotFoundError, CheckpointError, OutputError
        There is no such folder; a link leaves it; the copy cannot be written.
    """
    if not component:
        raise ConfigurationError(f"pipeline {pipeline}: the model was not quantized from a pipeline; leave it out")
    root = SourceFolder.at(pipeline)
    index = root.json(INDEX_NAME)
    if index is None:
        raise ConfigurationError(f"pipeline {pipeline}: has no {INDEX_NAME}; give the folder that was quantized")
    choose_component(root, index, component)
    left: list[str] = []
    for name in index:
        # Its folder's name is the key, a plain one or none of ours.
        if name != component and _is_component(index, name) and (root.path / name).is_dir():
            left += _copy(SourceFolder.at(root.path / name, inside=root), folder / name)
    return tuple(left)


def _copy(source: SourceFolder, target: Path) -> list[str]:
    left = []
    for name in source.names():
        if (source.path / name).is_dir() or name.endswith(NOT_COPIED):
            left.append(f"{source.path.name}/{name}")
            continue
        final = target / name
        if final.exists():
            continue
        temporary = temporary_path(target)
        try:
            target.mkdir(exist_ok=True)
            shutil.copyfile(source.file(name), temporary)
        except OSError as error:
            raise as_output_error(error, final) from error
        publish(temporary, final)
    return left
