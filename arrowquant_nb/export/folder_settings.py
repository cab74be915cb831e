"""The `quantization_config` of an exported folder: per quantized tensor how it is stored, as checked values.

From it follows which tensors the safetensors files hold, with shape and dtype. Knows JSON values and arrays, no files
and no torch; `diffusers_folder.py` describes the whole layout.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.errors import ArrowQuantError, MetadataError, ShapeMismatchError
from arrowquant_nb.quantizers.activation_grid import ACTIVATION_BIT_WIDTHS
from arrowquant_nb.quantizers.layout import Layout
from arrowquant_nb.quantizers.low_rank import check_low_rank
from arrowquant_nb.quantizers.rotation import check_rotation
from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor
from arrowquant_nb.quantizers.time_tables import TimeAwareQuantMetadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["FORMAT_VERSION", "QUANT_METHOD", "FolderLayer", "FolderSettings"]

QUANT_METHOD = "arrowquant"
"""`quant_method` in `quantization_config`, by which diffusers finds the backend."""
FORMAT_VERSION = "1.1"
"""A new optional key is a minor version; what an older reader would misread is a major one."""
SCALE_DTYPES = ("float16", "float32")
ACTIVATION_RULES = ("per_token", "per_group")
MOST_WEIGHTS, MOST_DIMENSIONS = 2**40, 8


@dataclass(frozen=True)
class FolderLayer:
    """How one quantized tensor is stored."""

    shape: tuple[int, ...]
    """Shape of the float tensor."""
    dtype: str
    """Its dtype in the source: float32, float16 or bfloat16."""
    bit_width: int
    """2, 4 or 8."""
    group_size: int
    """Weights along a row that share a scale."""
    grid: str
    """zero_point, minimum, levels or k; see `storage.parquet_v2` for what codes mean."""
    method: str
    """How the grid was chosen; for people."""
    scale_dtype: str = "float16"
    """Dtype of the floats of the grid: float16 or float32."""
    rotation_seed: int | None = None
    """Signs of the Hadamard rotation that dequantizing undoes; None = not rotated."""
    low_rank: int = 0
    """Rank of the branch that is added; 0 = none."""
    equalization: str | None = None
    """Dtype of the column scales that dequantized columns are divided by; None = none."""
    activation_means: int = 0
    """Time groups that have channel means to take off the input; 0 = none."""
    activation_bit_width: int = 0
    """Bits that the input is rounded to: on the grids of `time_aware` where it has the layer, else by
    `activation_rule`; 0 = it stays float."""
    activation_rule: str = "per_token"
    """per_token: a scale for every token. per_group: a scale for every token and 64 channels."""

    def __post_init__(self) -> None:
        """Refuse what no tensor can be."""
        numbers = (self.bit_width, self.group_size, self.low_rank, self.activation_means, *self.shape)
        if any(type(n) is not int for n in numbers) or min((*self.shape, self.low_rank, self.activation_means)) < 0:
            raise MetadataError(f"shape {str(self.shape)[:80]}, widths, ranks and groups must be integers >= 0")
        if type(self.activation_bit_width) is not int or self.activation_bit_width not in (0, *ACTIVATION_BIT_WIDTHS):
            raise MetadataError(f"activation_bit_width {self.activation_bit_width!r} is not 4 or 8")
        if self.activation_rule not in ACTIVATION_RULES:
            raise MetadataError(
                f"activation_rule {str(self.activation_rule)[:40]!r} is not one of {', '.join(ACTIVATION_RULES)}"
            )
        if len(self.shape) > MOST_DIMENSIONS or not 0 < math.prod(self.shape) <= MOST_WEIGHTS:
            raise MetadataError(f"a shape of {len(self.shape)} numbers, {str(self.shape)[:80]}, cannot be")
        if self.dtype not in ("float32", "float16", "bfloat16") or not isinstance(self.method, str):
            raise MetadataError(f"dtype {self.dtype!r} or method {self.method!r} cannot be")
        if self.scale_dtype not in SCALE_DTYPES or self.equalization not in (None, *SCALE_DTYPES):
            raise MetadataError(
                f"scale_dtype {self.scale_dtype!r} and equalization {self.equalization!r} must be float16 or float32"
            )
        layout = self.layout
        if self.rotation_seed is not None:
            check_rotation("rotation_seed", layout.columns, "hadamard", self.rotation_seed)
        check_low_rank("low_rank", layout.rows * layout.columns, self.low_rank)

    @cached_property
    def layout(self) -> Layout:
        """Sizes of codes and scales."""
        return Layout.of_shape(self.shape, self.bit_width, self.group_size, self.grid)

    @property
    def is_plain(self) -> bool:
        """Whether the codes are the whole weight: not rotated, not equalized, no branch."""
        return self.rotation_seed is None and self.equalization is None and not self.low_rank

    def parts(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every tensor that is stored for this one, by the last part of its name."""
        layout = self.layout
        names = ("packed", "scales", "zero_points")
        buffers = layout.buffers(np.dtype(self.scale_dtype))
        found = {name: (shape, dtype.name) for name, (shape, dtype) in zip(names, buffers, strict=True)}
        if self.low_rank:
            found["low_rank_a"] = ((layout.rows, self.low_rank), "float16")
            found["low_rank_b"] = ((self.low_rank, layout.columns), "float16")
        if self.equalization is not None:
            found["equalization"] = ((layout.columns,), self.equalization)
        if self.activation_means:
            found["activation_means"] = ((self.activation_means, layout.columns), "float32")
        return found

    def check(self, name: str, found: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        """Raise ShapeMismatchError unless `found` (part -> shape, dtype) are exactly the parts of this tensor."""
        wanted = self.parts()
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        if missing or extra:
            raise ShapeMismatchError(
                f"{name!r}: the weights do not fit quantization_config: missing {[f'{name}.{p}' for p in missing]}, "
                f"not expected {[f'{name}.{p}' for p in extra]}; export the model again"
            )
        for part, (shape, dtype) in wanted.items():
            if found[part] != (shape, dtype):
                raise ShapeMismatchError(
                    f"'{name}.{part}' must be {dtype} {list(shape)} for INT{self.bit_width} {self.grid} "
                    f"{list(self.shape)} in groups of {self.group_size}, found {found[part][1]} "
                    f"{list(found[part][0])}; the folder is of another model or damaged"
                )

    def tensor(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> QuantizedTensor:
        """Join the stored arrays (part -> array, views are kept) into a quantized tensor.

        Raises
        ------
        ShapeMismatchError, ConfigurationError
            A part missing, extra, or of another shape or dtype; equalization that cannot be divided by.
        """
        self.check(name, {part: (array.shape, array.dtype.name) for part, array in arrays.items()})
        return QuantizedTensor(
            packed=arrays["packed"],
            scales=arrays["scales"],
            zero_points=arrays["zero_points"],
            shape=self.shape,
            bit_width=self.bit_width,
            group_size=self.group_size,
            method=self.method,
            grid=self.grid,
            dtype=self.dtype,
            statistics=LayerStatistics(0, 0.0, 0.0, 0.0, 0.0),
            rotation_seed=self.rotation_seed,
            low_rank_a=arrays.get("low_rank_a"),
            low_rank_b=arrays.get("low_rank_b"),
            equalization=arrays.get("equalization"),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is at its default is left out."""
        defaults = {item.name: item.default for item in fields(self)}
        found = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return {**found, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, name: str, values: Any, newer: bool = False) -> FolderLayer:
        """Read `to_dict`; with `newer`, keys of a later minor version are passed over.

        Raises
        ------
        MetadataError
            A key missing or unknown, or a value that cannot be; `name` is the tensor's.
        """
        known = {item.name for item in fields(cls)}
        try:
            unknown = sorted(set(values) - known)
            if unknown and not newer:
                raise MetadataError(f"unknown keys {unknown}")
            given = {key: value for key, value in values.items() if key in known}
            return cls(**{**given, "shape": tuple(given["shape"])})
        except (ArrowQuantError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise MetadataError(
                f"quantization_config: the entry of {name!r} is damaged: {type(error).__name__}: {error}; "
                "export the model again"
            ) from error


@dataclass(frozen=True)
class FolderSettings:
    """The whole `quantization_config`."""

    layers: Mapping[str, FolderLayer]
    """Quantized tensors by name."""
    modality: str = ""
    """text, code, image or audio."""
    kept: tuple[str, ...] | None = None
    """Names of the other tensors; None where a writer did not list them."""
    time_aware: TimeAwareQuantMetadata | None = None
    """Activation grids per timestep group; None: activations stay float."""
    format_version: str = FORMAT_VERSION
    """major.minor of the layout."""
    quant_method: str = field(default=QUANT_METHOD)
    """Always "arrowquant"."""

    def __post_init__(self) -> None:
        """Refuse time tables of tensors that are not quantized."""
        unknown = sorted(set(self.time_aware.by_layer) - set(self.layers)) if self.time_aware else []
        if unknown:
            raise MetadataError(f"quantization_config: time tables name {unknown[:5]}, which are not quantized")

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the value of `quantization_config` in `config.json`."""
        return {
            "quant_method": self.quant_method,
            "format_version": self.format_version,
            "modality": self.modality,
            "kept": None if self.kept is None else list(self.kept),
            "time_aware": None if self.time_aware is None else self.time_aware.to_dict(),
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
        }

    @classmethod
    def from_dict(cls, values: Any) -> FolderSettings:
        """Read `to_dict`.

        Raises
        ------
        MetadataError
            Another quantization method, a newer major version, or a value that cannot be.
        """
        if not isinstance(values, dict) or values.get("quant_method") != QUANT_METHOD:
            method = values.get("quant_method") if isinstance(values, dict) else values
            raise MetadataError(f"quantization_config: quant_method is {str(method)[:80]!r}, not {QUANT_METHOD!r}")
        version = values.get("format_version")
        newer = _is_newer(version)
        layers, kept, tables = values.get("layers"), values.get("kept"), values.get("time_aware")
        if not isinstance(layers, dict) or not isinstance(values.get("modality", ""), str):
            raise MetadataError("quantization_config: layers must be an object of tensors, modality a word")
        if kept is not None and not (isinstance(kept, list) and all(isinstance(name, str) for name in kept)):
            raise MetadataError("quantization_config: kept must be a list of names or null")
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown and not newer:
            raise MetadataError(f"quantization_config: unknown keys {unknown}")
        return cls(
            layers={name: FolderLayer.from_dict(name, entry, newer) for name, entry in layers.items()},
            modality=values.get("modality", ""),
            kept=None if kept is None else tuple(kept),
            time_aware=None if tables is None else _time_tables(tables),
            format_version=str(version),
        )


def _is_newer(version: Any) -> bool:
    """Whether a version is a later minor one; MetadataError for a later major one, or none at all."""
    parts = version.split(".") if isinstance(version, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise MetadataError(f"quantization_config: format_version {str(version)[:40]!r} is not MAJOR.MINOR")
    major, minor = map(int, parts)
    ours_major, ours_minor = map(int, FORMAT_VERSION.split("."))
    if major != ours_major:
        raise MetadataError(
            f"quantization_config has format_version {version}; this version reads {ours_major}.x: "
            "update arrowquant_nb, or export the model again"
        )
    return minor > ours_minor


def _time_tables(values: Any) -> TimeAwareQuantMetadata:
    try:
        return TimeAwareQuantMetadata.from_dict(values)
    except (ArrowQuantError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise MetadataError(
            f"quantization_config: time_aware is damaged: {type(error).__name__}: {error}; export the model again"
        ) from error
