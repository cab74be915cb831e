"""What a folder holds, before or after quantization, without reading a weight.

One listing for everything the package can open; knows nothing of the command line.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from arrowquant_nb import tables
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.runs.locating import locate_model
from arrowquant_nb.storage.checkpoint import open_checkpoint
from arrowquant_nb.storage.quantized import open_quantized

__all__ = ["ListedTensor", "Listing", "inspect_model"]

_HEADER = ("tensor", "shape", "stored as", "bits/weight", "kB")


@dataclass(frozen=True)
class ListedTensor:
    """One tensor of a listing."""

    name: str
    shape: tuple[int, ...]
    stored_as: str
    """The dtype, or bit width, method and group size of a quantized tensor."""
    nbytes: int
    """Stored bytes; scales and zero points counted."""
    bits_per_weight: float


@dataclass(frozen=True, repr=False)
class Listing:
    """A model folder or file: headline facts and its tensors in file order."""

    model: str
    kind: str
    """"quantized", or what kind of source it is."""
    facts: dict[str, str]
    """Headline facts in words."""
    tensors: tuple[ListedTensor, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; `from_dict` takes them back."""
        return asdict(self) | {"tensors": [asdict(t) | {"shape": list(t.shape)} for t in self.tensors]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the listing that `to_dict` wrote down."""
        tensors = tuple(ListedTensor(**(row | {"shape": tuple(row["shape"])})) for row in data["tensors"])
        return cls(**(data | {"tensors": tensors}))

    def __repr__(self) -> str:
        return f"Listing({self.model!r}, {self.kind}, {len(self.tensors)} tensors)"

    def __str__(self) -> str:
        width = max(len(name) for name in self.facts)
        head = "\n".join(f"{name:<{width}}  {value}" for name, value in self.facts.items())
        return f"{head}\n\n{tables.text_table(_HEADER, self._rows())}"

    def _repr_html_(self) -> str:
        facts = tables.html_table(("", ""), self.facts.items())
        return f"{facts}<details><summary>{len(self.tensors)} tensors</summary>{self._table()}</details>"

    def _table(self) -> str:
        return tables.html_table(_HEADER, self._rows())

    def _rows(self) -> list[list[str]]:
        return [
            [
                tensor.name,
                "x".join(map(str, tensor.shape)) or "scalar",
                tensor.stored_as,
                f"{tensor.bits_per_weight:.4g}",
                f"{tensor.nbytes / 1000:.1f}",
            ]
            for tensor in self.tensors
        ]


def inspect_model(model: str | Path, component: str | None = None, variant: str | None = None) -> Listing:
    """List a quantized model, a float checkpoint or a bundled sample.

    Parameters
    ----------
    model : as `quantize_diffusion_model` takes it, or a quantized folder.
    component, variant : which part of a pipeline, and which variant of its files; default the denoiser, plain.

    Raises
    ------
    ModelNotFoundError, CheckpointError, MetadataError, ValidationError
        There is nothing there, or what is there cannot be opened; the message names the file.
    ConfigurationError
        There is no such component or variant.
    """
    located = locate_model(model)
    if (located.path / "manifest.json").is_file():
        for option, value in (("component", component), ("variant", variant)):
            if value is not None:
                raise ConfigurationError(
                    f"{located.path}: a model folder of ours has one component and no variants; leave out "
                    f"{option}={value!r}"
                )
        return _quantized(located.path)
    with open_checkpoint(located.path, component, variant) as checkpoint:
        tensors = tuple(
            ListedTensor(entry.name, entry.shape, entry.dtype, entry.nbytes, _bits(entry.nbytes, entry.shape))
            for entry in checkpoint.entries.values()
        )
        facts = {
            "model": located.name,
            "kind": checkpoint.kind.replace("_", " "),
            "class": checkpoint.class_name or "not said",
            "component": checkpoint.component or "none",
            "variant": checkpoint.variant or "none",
            "tensors": str(len(tensors)),
            "size": f"{checkpoint.n_bytes / 1e6:.3f} MB",
        }
        return Listing(located.name, checkpoint.kind, facts, tensors)


def _quantized(folder: Path) -> Listing:
    with open_quantized(folder) as model:
        tensors = tuple(
            ListedTensor(
                tensor.name,
                tensor.shape,
                tensor.stored_as,
                tensor.nbytes,
                tensor.bits_per_weight,
            )
            for tensor in model.values()
        )
        config = model.config
        facts = {
            "model": folder.resolve().name,
            "kind": "quantized",
            "modality": model.modality,
            "profile": f"{config.deployment_profile}, INT{config.bit_width}, group size {config.group_size}",
            "tensors": f"{len(tensors)}, of which {sum(t.stored_as.startswith('INT') for t in tensors)} quantized",
            "payload": f"{sum(t.nbytes for t in tensors) / 1e6:.3f} MB",
        }
        return Listing(facts["model"], "quantized", facts, tensors)


def _bits(nbytes: int, shape: tuple[int, ...]) -> float:
    n_weights = math.prod(shape)
    return 8 * nbytes / n_weights if n_weights else 0.0
