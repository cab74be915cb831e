"""Open what users have and list its tensors without reading them.

`open_checkpoint` finds out what a path is, reads JSON and headers only, and returns a `Checkpoint`
whose rows are read on demand. Knows files; which tensors are quantized is `policy`, what the modality
is decides `core`.
"""

import os
from pathlib import Path
from types import MappingProxyType

from arrowquant_nb.errors import CheckpointError, ConfigurationError, ModelNotFoundError
from arrowquant_nb.storage.checkpoint_reader import Checkpoint
from arrowquant_nb.storage.companions import attach_scales, refuse_quantized
from arrowquant_nb.storage.evidence import Evidence, collect_evidence
from arrowquant_nb.storage.safetensors_file import SafetensorsHeader, TensorEntry, read_header
from arrowquant_nb.storage.shard_index import read_shards
from arrowquant_nb.storage.source_folder import SourceFolder, choose_component
from arrowquant_nb.storage.weight_files import CONVERSION_HINT, find_weights, shard_of

__all__ = ["Checkpoint", "TensorEntry", "open_checkpoint"]


def open_checkpoint(
    path: str | os.PathLike[str],
    component: str | None = None,
    variant: str | None = None,
    *,
    requantize: bool = False,
) -> Checkpoint:
    """Open a model and list its tensors; only JSON files and headers are read, nothing is executed.

    Parameters
    ----------
    path : str or path
        A diffusers pipeline or component folder, a transformers folder, a `.safetensors` file, a folder with
        safetensors shards, or a float Parquet model of ours.
    component : str, optional
        Component of a pipeline; by default its `transformer`, else its `unet`.
    variant : str, optional
        Variant of the weight files, such as `fp16`; by default the plain ones, or the only variant there is.
    requantize : bool
        Allow a Parquet model of ours that is quantized already; its weights are dequantized first.

    Raises
    ------
    ModelNotFoundError
        There is nothing at `path`.
    CheckpointError
        Damaged, hostile, already quantized or unsupported weights; the message names file, tensor and fix.
    MetadataError
        A JSON file beside the weights cannot be used.
    ConfigurationError
        `component` or `variant` does not exist, or has to be chosen.
    """
    given = Path(path)
    if "\0" in os.fspath(given) or not os.path.lexists(given):
        raise ModelNotFoundError(f"{os.fspath(given)!r}: nothing there; give a model folder or a .safetensors file")
    if not given.is_dir():
        return _open_file(given, component, variant)
    root = SourceFolder.at(given)
    if _is_parquet_model(root):
        from arrowquant_nb.storage.parquet_checkpoint import open_parquet_checkpoint  # noqa: PLC0415 (pyarrow, on use)

        return open_parquet_checkpoint(given, requantize)
    index = root.json("model_index.json")
    if index is None:
        return _open_folder(root, _enclosing_pipeline(root), component, variant)
    chosen = choose_component(root, index, component)
    return _open_folder(SourceFolder.at(root.path / chosen, inside=root), root, chosen, variant, given=root)


def _open_file(path: Path, component: str | None, variant: str | None) -> Checkpoint:
    for option, value in (("component", component), ("variant", variant)):
        if value is not None:
            raise ConfigurationError(f"{path}: {option}={value!r} makes sense for a folder only; leave it out")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise CheckpointError(f"{path}: a pickled checkpoint; {CONVERSION_HINT}")
    if shard_of(path.name):
        raise CheckpointError(f"{path}: this is one shard of several; give the folder {path.parent}")
    header = read_header(path)
    listed, scales = _listed([(path, header)])
    evidence = collect_evidence(path, None, None, {}, header.metadata, listed)
    return Checkpoint(
        path, "single_file", None, None, MappingProxyType({}), None, evidence, listed, scales, {path: header.stamp}, ()
    )


def _open_folder(
    folder: SourceFolder,
    pipeline: SourceFolder | None,
    component: str | None,
    variant: str | None,
    given: SourceFolder | None = None,
) -> Checkpoint:
    if given is None and component not in (None, folder.path.name):
        raise ConfigurationError(
            f"{folder.path}: component={component!r} needs a pipeline folder, one that holds model_index.json"
        )
    config = folder.json("config.json") or {}
    prefer = "diffusion_pytorch_model" if "_class_name" in config else "model"
    weights = find_weights(folder, variant, prefer)
    headers = read_shards(list(weights.paths), weights.weight_map)
    listed, scales = _listed(headers)
    metadata = {key: value for _, header in headers for key, value in header.metadata.items()}
    evidence = collect_evidence((given or folder).path, folder, pipeline, config, metadata, listed)
    kind = _kind(given, evidence)
    return Checkpoint(
        (given or folder).path, kind, folder.path.name if given else None, weights.variant, MappingProxyType(config),
        evidence.component_class or next(iter(evidence.architectures), None), evidence, listed, scales,
        {path: header.stamp for path, header in headers}, _metadata_files(folder, given),
    )  # fmt: skip


def _listed(headers: list[tuple[Path, SafetensorsHeader]]) -> tuple[dict[str, TensorEntry], dict[str, TensorEntry]]:
    entries = {entry.name: entry for _, header in headers for entry in header.entries}
    if not entries:
        raise CheckpointError(f"{headers[0][0]}: holds no tensors; download it again")
    for _, header in headers:
        refuse_quantized({entry.name: entry for entry in header.entries}, header.metadata)
    return attach_scales(entries)


def _kind(given: SourceFolder | None, evidence: Evidence) -> str:
    if given is not None:
        return "diffusers_pipeline"
    if evidence.component_class is not None:
        return "diffusers_component"
    return "transformers" if evidence.architectures or evidence.model_type else "weights_folder"


def _metadata_files(folder: SourceFolder, pipeline: SourceFolder | None) -> tuple[tuple[Path, str], ...]:
    files = {target: source for source, target in folder.support_files()}
    if pipeline is not None:
        for source, target in pipeline.support_files():
            files.setdefault(target, source)
        files["model_index.json"] = pipeline.file("model_index.json")
    return tuple((source, target) for target, source in sorted(files.items()))


def _enclosing_pipeline(folder: SourceFolder) -> SourceFolder | None:
    """Return the pipeline a component folder belongs to, when `model_index.json` beside it says so."""
    absolute = Path.cwd() / folder.path
    parent = SourceFolder.at(absolute.parent)
    index = parent.json("model_index.json")
    return parent if index is not None and absolute.name in index else None


def _is_parquet_model(folder: SourceFolder) -> bool:
    names = folder.names()
    return "manifest.json" in names and any(name.endswith(".parquet") for name in names)
