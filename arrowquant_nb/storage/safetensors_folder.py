"""Writing tensors back as safetensors files, one tensor in memory at a time.

The layout is the source's: same file names, same tensor names, shapes and dtypes. The header is the format's own
(8-byte length, JSON, data), written by hand because the library wants every tensor in memory at once.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.durable import as_output_error, drop, publish, temporary_path, write_file
from arrowquant_nb.storage.safetensors_file import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_SPELLING = {name: spelled for spelled, name in DTYPES.items()}


@dataclass(frozen=True)
class TensorToWrite:
    """Name, shape and dtype of one tensor; its bytes come when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


def write_safetensors(
    path: Path,
    tensors: Sequence[TensorToWrite],
    content: Callable[[str], memoryview],
    header_metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one file atomically; `content(name)` returns the bytes of a tensor.

    Raises
    ------
    OutputError
        The file cannot be written; nothing is left under its name.
    """
    header: dict[str, Any] = {"__metadata__": dict(header_metadata or {"format": "pt"})}
    offset = 0
    for tensor in tensors:
        span = [offset, offset + tensor.nbytes]
        header[tensor.name] = {"dtype": _SPELLING[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = temporary_path(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                stream.write(content(tensor.name))
    except OSError as error:
        drop(temporary)
        raise as_output_error(error, path) from error
    except BaseException:
        drop(temporary)
        raise
    publish(temporary, path)


def write_index(path: Path, weight_map: Mapping[str, str], n_bytes: int) -> None:
    """Write the index of a sharded checkpoint."""
    index = {"metadata": {"total_size": n_bytes}, "weight_map": dict(weight_map)}
    write_file(path, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())


def index_name(shard_name: str) -> str:
    """Return the index name that belongs to a shard.

    >>> index_name("diffusion_pytorch_model-00001-of-00002.safetensors")
    'diffusion_pytorch_model.safetensors.index.json'
    >>> index_name("diffusion_pytorch_model.fp16-00001-of-00002.safetensors")
    'diffusion_pytorch_model.safetensors.index.fp16.json'
    """
    stem = shard_name.removesuffix(".safetensors")
    parts = [p for p in stem.replace("-", ".").split(".") if not p.isdigit() and p != "of"]
    variant = f".{parts[1]}" if len(parts) > 1 else ""
    return f"{parts[0]}.safetensors.index{variant}.json"
