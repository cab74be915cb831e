"""The index of a sharded checkpoint: which tensor lies in which file.

Both writers' forms hold the same JSON, `{"metadata": {...}, "weight_map": {tensor: file}}`. File names
in it are untrusted: plain names inside the folder only.
"""

from pathlib import Path

from arrowquant_nb.errors import CheckpointError
from arrowquant_nb.storage.json_file import read_json_object
from arrowquant_nb.storage.safetensors_file import SafetensorsHeader, TensorEntry, quoted, read_header
from arrowquant_nb.storage.source_folder import SourceFolder

MAX_INDEX_NBYTES = 64 << 20  # 91,000 tensors take about 9 MB


def read_index(path: Path, folder: SourceFolder) -> dict[str, str]:
    """Return tensor name -> shard file name, each a plain existing name inside the folder.

    Raises
    ------
    MetadataError
        The file is not a JSON object, or too large.
    CheckpointError
        No usable `weight_map`, a path instead of a name, a missing shard, names that differ only in case.
    """
    weight_map = read_json_object(path, max_nbytes=MAX_INDEX_NBYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map of tensor names to files; download it again")
    present = set(folder.names())
    folded: dict[str, str] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(f"{path}: the file of {quoted(tensor)} must be a name, found {type(file).__name__}")
        if folded.setdefault(file.casefold(), file) != file:
            raise CheckpointError(
                f"{path}: names {quoted(file)} and {quoted(folded[file.casefold()])}, which differ only in case"
            )
    for file in folded.values():
        if file != Path(file).name or "\0" in file or "\\" in file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: {quoted(file)} is not a plain .safetensors file name; shards must lie beside the index"
            )
        if file not in present:
            near = [name for name in present if name.casefold() == file.casefold()]
            hint = f" (there is {near[0]!r}, which differs in case)" if near else ""
            raise CheckpointError(f"{path}: the shard {quoted(file)} is missing{hint}; download it")
    return weight_map


def read_shards(paths: list[Path], weight_map: dict[str, str] | None) -> list[tuple[Path, SafetensorsHeader]]:
    """Read the headers of all shards and check that every tensor lies where it should, and only there.

    A tensor that a shard holds and the index forgets is listed too, as every loader does.

    Raises
    ------
    CheckpointError
        A tensor lies in two shards, or not in the shard that the index names.
    """
    headers = [(path, read_header(path)) for path in paths]
    found: dict[str, TensorEntry] = {}
    for path, header in headers:
        for entry in header.entries:
            if entry.name in found:
                raise CheckpointError(
                    f"{quoted(entry.name)} lies in two shards, {found[entry.name].file} and {path}; keep one"
                )
            found[entry.name] = entry
    for tensor, file in (weight_map or {}).items():
        if tensor not in found:
            raise CheckpointError(
                f"{paths[0].parent / file}: the index lists {quoted(tensor)} there, but the file does not hold it; "
                "download the shard again"
            )
        if found[tensor].file.name != file:
            raise CheckpointError(
                f"{found[tensor].file}: holds {quoted(tensor)}, which the index places in {quoted(file)}; "
                "download index and shards together"
            )
    return headers
