"""Names of weight files in one folder: stem, variant, shards.

    STEM[.VARIANT].safetensors                          one file
    STEM[.VARIANT]-00001-of-00003.safetensors           shards; older releases: STEM-00001-of-00003.VARIANT.safetensors
    STEM.safetensors.index[.VARIANT].json               index; also STEM.safetensors.VARIANT.index.json
                                                        and STEM.VARIANT.safetensors.index.json

STEM is `diffusion_pytorch_model` (diffusers) or `model` (transformers). Knows names only.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from arrowquant_nb.errors import CheckpointError, ConfigurationError
from arrowquant_nb.storage.safetensors_file import quoted
from arrowquant_nb.storage.shard_index import read_index
from arrowquant_nb.storage.source_folder import SourceFolder

STEMS = ("diffusion_pytorch_model", "model")
_VARIANT = r"(?:\.(?P<{}>[A-Za-z0-9_]+))?"
_WEIGHTS = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)}){_VARIANT.format('before')}"
    rf"(?:-(?P<shard>\d{{5}})-of-(?P<shards>\d{{5}}))?{_VARIANT.format('after')}\.safetensors"
)
_INDEX = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)}){_VARIANT.format('first')}\.safetensors{_VARIANT.format('middle')}"
    rf"\.index{_VARIANT.format('last')}\.json"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CONVERSION_HINT = (
    "nothing in a pickle is executed here. Convert it once: safetensors.torch.save_file("
    "torch.load(PATH, weights_only=True), 'model.safetensors')"
)


@dataclass
class _Variant:
    single: str | None = None
    index: str | None = None
    shards: dict[int, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightFiles:
    """The files of one set of weights."""

    paths: tuple[Path, ...]
    variant: str | None
    weight_map: dict[str, str] | None
    """Tensor name -> shard name from the index; None without one."""


def find_weights(folder: SourceFolder, variant: str | None, prefer: str | None = None) -> WeightFiles:
    """Choose the weight files of a component or language-model folder.

    Without `variant` the plain files win; a single variant is taken (and recorded) when there are no plain
    ones; several are an error. `prefer` is the stem that wins when both stems are there.

    Raises
    ------
    ConfigurationError
        The variant is not there, or has to be chosen.
    CheckpointError
        No safetensors weights, only pickles, an incomplete set of shards, two sets of the same weights.
    """
    names = folder.names()
    stems = _grouped(names)
    if not stems:
        return _lone_file(folder, names, variant)
    stem = prefer if prefer in stems else next(name for name in STEMS if name in stems)
    found = stems[stem]
    chosen = _choose(folder, found, variant)
    files = found[chosen]
    if files.single is not None and (files.index is not None or files.shards):
        raise CheckpointError(
            f"{folder.path}: holds the same weights twice, as {files.single} and as shards; remove one of them"
        )
    if files.single is not None:
        return WeightFiles((folder.file(files.single),), chosen, None)
    if files.index is not None:
        weight_map = read_index(folder.file(files.index), folder)
        return WeightFiles(tuple(folder.file(name) for name in sorted(set(weight_map.values()))), chosen, weight_map)
    return WeightFiles(_complete_shards(folder, files.shards), chosen, None)


def shard_of(name: str) -> bool:
    """Whether a file name is that of one shard among several.

    >>> shard_of("model-00001-of-00002.safetensors"), shard_of("model.safetensors")
    (True, False)
    """
    return re.search(r"-\d{5}-of-\d{5}(\.[A-Za-z0-9_]+)?\.safetensors$", name) is not None


def _grouped(names: list[str]) -> dict[str, dict[str | None, _Variant]]:
    stems: dict[str, dict[str | None, _Variant]] = {}
    for name in names:
        weights, index = _WEIGHTS.fullmatch(name), _INDEX.fullmatch(name)
        match = weights or index
        if match is None:
            continue
        parts = match.groupdict()
        keys = ("before", "after") if weights else ("first", "middle", "last")
        variant = next((parts[key] for key in keys if parts[key]), None)
        files = stems.setdefault(parts["stem"], {}).setdefault(variant, _Variant())
        if index is not None:
            files.index = name
        elif parts["shard"] is None:
            files.single = name
        else:
            files.shards.setdefault(int(parts["shards"]), []).append(name)
    return stems


def _choose(folder: SourceFolder, found: dict[str | None, _Variant], variant: str | None) -> str | None:
    offered = ", ".join("plain (no variant)" if name is None else name for name in sorted(found, key=str))
    if variant is not None and variant not in found:
        raise ConfigurationError(f"{folder.path}: no weights of variant {quoted(variant)}; there are: {offered}")
    if variant is not None or None in found:
        return variant
    if len(found) > 1:
        raise ConfigurationError(
            f"{folder.path}: several variants and no plain weights; choose variant= one of: {offered}"
        )
    return next(iter(found))


def _complete_shards(folder: SourceFolder, shards: dict[int, list[str]]) -> tuple[Path, ...]:
    if len(shards) > 1:
        totals = ", ".join(map(str, sorted(shards)))
        raise CheckpointError(f"{folder.path}: shards of different sets lie here (of {totals}) and there is no index")
    total, names = next(iter(shards.items()))
    if len(names) != total:
        raise CheckpointError(
            f"{folder.path}: {len(names)} of {total} shards are here and there is no index; download the rest"
        )
    return tuple(folder.file(name) for name in sorted(names))


def _lone_file(folder: SourceFolder, names: list[str], variant: str | None) -> WeightFiles:
    lone = [name for name in names if name.endswith(".safetensors")]
    if len(lone) == 1 and variant is None and not shard_of(lone[0]):
        return WeightFiles((folder.file(lone[0]),), None, None)
    if lone:
        shown = ", ".join(quoted(name) for name in lone[:8])
        raise CheckpointError(f"{folder.path}: cannot tell which weights are meant ({shown}); give the file itself")
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise CheckpointError(f"{folder.path}: only pickled weights here ({quoted(pickles[0])}); {CONVERSION_HINT}")
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        raise CheckpointError(
            f"{folder.path}: only GGUF weights here ({quoted(gguf[0])}), which are quantized already; "
            "give the float safetensors checkpoint"
        )
    shown = ", ".join(quoted(name) for name in names[:8]) or "nothing"
    shown += "; in the Hugging Face cache give the folder snapshots/REVISION" if "snapshots" in names else ""
    raise CheckpointError(f"{folder.path}: no .safetensors weights here (found {shown})")
