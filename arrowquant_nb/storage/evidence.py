"""What the files of a model say about its modality; the decision itself is `core.modality.detect`.

Collects strings and says where it looked. It decides nothing and reads no weights.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from arrowquant_nb.errors import MetadataError
from arrowquant_nb.storage.json_file import text_field
from arrowquant_nb.storage.safetensors_file import quoted
from arrowquant_nb.storage.source_folder import SourceFolder, model_name, pipeline_class


@dataclass(frozen=True)
class Evidence:
    """Everything detection may look at, as strings exactly as found."""

    model_name: str
    """Folder, file or repository name, with `_name_or_path` of the config."""
    metadata_modality: str | None = None
    """`modality` at the top level of `metadata.json`; JSON text when it is not a string."""
    metadata_error: str | None = None
    """Why `metadata.json` could not be read; it matters only when nothing stronger decides."""
    pipeline_class: str | None = None
    """`_class_name` of `model_index.json`."""
    component_class: str | None = None
    """`_class_name` of the component's `config.json`."""
    architectures: tuple[str, ...] = ()
    """`architectures` of `config.json`."""
    model_type: str | None = None
    """`model_type` of `config.json`."""
    header_architecture: str | None = None
    """`modelspec.architecture` of the safetensors header."""
    tensor_names: tuple[str, ...] = ()
    """Names of all tensors."""
    looked_at: tuple[str, ...] = ()
    """One phrase for each place looked at and what was found there."""


def collect_evidence(
    path: Path,
    folder: SourceFolder | None,
    pipeline: SourceFolder | None,
    config: Mapping[str, object],
    header_metadata: Mapping[str, str],
    tensor_names: Iterable[str],
) -> Evidence:
    """Gather what there is to see.

    Parameters
    ----------
    path : Path
        What the user gave.
    folder : SourceFolder or None
        The component or language-model folder; None for a single file.
    pipeline : SourceFolder or None
        The folder around it that holds `model_index.json`.
    config, header_metadata : mapping
        `config.json` and the free text of the safetensors header, empty when absent.
    tensor_names : iterable of str
        All names.
    """
    looked_at: list[str] = []
    metadata = _metadata([found for found in (pipeline, folder) if found is not None], looked_at)
    pipeline_name = _pipeline(pipeline, looked_at)
    where = path if folder is None else folder.path / "config.json"
    component = text_field(config, "_class_name", where)
    model_type = text_field(config, "model_type", where)
    architectures = _architectures(config, where)
    if folder is not None:
        facts = {"_class_name": component, "architectures": architectures or None, "model_type": model_type}
        said = ", ".join(f"{key} {str(value)[:120]!r}" for key, value in facts.items() if value is not None)
        looked_at.append(f"config.json: {said or ('no class in it' if config else 'absent')}")
    header = header_metadata.get("modelspec.architecture")
    looked_at.append(
        f"safetensors header: modelspec.architecture {header[:120]!r}" if header else "safetensors header: silent"
    )
    names = tuple(tensor_names)
    sample = ", ".join(quoted(name, 60) for name in names[:3])
    looked_at.append(f"{len(names):,} tensor names ({sample}{', ...' if len(names) > 3 else ''})")
    return Evidence(
        model_name(path, config), *metadata, pipeline_name, component, architectures, model_type, header, names,
        tuple(looked_at),
    )  # fmt: skip


def _metadata(folders: list[SourceFolder], looked_at: list[str]) -> tuple[str | None, str | None]:
    for folder in folders:
        try:
            fields = folder.json("metadata.json")
        except MetadataError as error:
            looked_at.append(f"metadata.json: {error}")
            return None, str(error)
        if fields is not None and fields.get("modality") is not None:
            value = fields["modality"]
            looked_at.append(f"metadata.json: modality {str(value)[:80]!r}")
            return (value if isinstance(value, str) else json.dumps(value)[:200]), None
    if folders:
        looked_at.append("metadata.json: absent, or without a top-level modality")
    return None, None


def _pipeline(pipeline: SourceFolder | None, looked_at: list[str]) -> str | None:
    if pipeline is None:
        return None
    found = pipeline_class(pipeline)
    looked_at.append(f"model_index.json: _class_name {found[:120]!r}" if found else "model_index.json: no _class_name")
    return found


def _architectures(config: Mapping[str, object], where: Path) -> tuple[str, ...]:
    found = config.get("architectures")
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise MetadataError(f"{where}: architectures must be a list of class names, found {str(found)[:80]!r}")
    return tuple(found)
