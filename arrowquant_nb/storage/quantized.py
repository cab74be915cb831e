"""Opening a finished model: a read-only mapping from tensor name to a lazy tensor over mapped files.

Opening reads only the manifest. The first access to a tensor maps its file and (verify="lazy") checks the file's
hash once. Knows nothing of runs or calibration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from arrowquant_nb.arrow_files import arrow_file
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import (
    ConfigurationError,
    MetadataError,
    ModelNotFoundError,
    ValidationError,
)
from arrowquant_nb.quantizers.activation_grid import ACTIVATION_BIT_WIDTHS
from arrowquant_nb.quantizers.spatial_metadata import SpatialQuantMetadata
from arrowquant_nb.quantizers.time_tables import TimeAwareQuantMetadata
from arrowquant_nb.storage.journal import JOURNAL_NAME, read_commits
from arrowquant_nb.storage.lazy_tensor import LazyTensor
from arrowquant_nb.storage.manifest import Manifest, read_manifest
from arrowquant_nb.storage.model_files import ModelFiles
from arrowquant_nb.storage.parquet_reader import ParquetV2Extended

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from arrowquant_nb.storage.model_files import Verify
    from arrowquant_nb.storage.parquet_v2 import TileReference


class QuantizedModel(Mapping[str, LazyTensor]):
    """A finished model folder, read-only; a context manager that unmaps on exit.

    Attributes
    ----------
    path : the folder.
    config : the configuration it was made with.
    modality : text, code, image or audio.
    """

    def __init__(self, path: Path, manifest: Manifest, verify: Verify, *, private: bool = False) -> None:
        self.path = path
        self._manifest = manifest
        self._files = ModelFiles(path, manifest.files, verify, private=private)
        self._tensors: dict[str, LazyTensor] = {}
        try:
            self.config = DiffusionQuantConfig.from_dict(manifest.model["config"])
            self.modality = str(manifest.model["modality"])
        except (KeyError, TypeError, ConfigurationError) as error:
            raise MetadataError(f"{path}: the manifest's config cannot be read: {error}") from error

    def __getitem__(self, name: str) -> LazyTensor:
        if name not in self._tensors:
            self._tensors[name] = LazyTensor(self, name, self._manifest.tensors[name])
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifest.tensors)

    def __len__(self) -> int:
        return len(self._manifest.tensors)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the manifest says of the source and of the decisions (class name, files, strategy)."""
        return dict(self._manifest.model)

    @cached_property
    def rounded_inputs(self) -> Mapping[str, int]:
        """Layers whose inputs are to be rounded when the model runs -> bits, 4 or 8; in model order."""
        return {name: bits for name, entry in self._manifest.tensors.items() if (bits := _input_bits(name, entry))}

    @cached_property
    def time_aware(self) -> TimeAwareQuantMetadata | None:
        """Grids of the layers' inputs per group of timesteps; None where no input has a stored grid.

        Layers of `rounded_inputs` without a table here are rounded with a scale per token.
        """
        parts = []
        for name, entry in self._manifest.tensors.items():
            if entry.get("time_aware") is not None:
                parts.append(_metadata(TimeAwareQuantMetadata, entry["time_aware"], f"time_aware of {name!r}"))
                if tuple(parts[-1].by_layer) != (name,) or _input_bits(name, entry) != parts[-1].bit_width:
                    raise MetadataError(
                        f"{self.path}: the time table filed under {name!r} is another layer's or width's"
                    )
        if not parts:
            return None
        first = parts[0]
        if len({(part.n_timesteps, part.range_rule, part.reading) for part in parts}) > 1:
            raise MetadataError(f"{self.path}: the time tables of its layers are of different time scales or rules")
        joined: TimeAwareQuantMetadata = replace(first, tables=tuple(t for part in parts for t in part.tables))
        return joined

    @cached_property
    def spatial(self) -> SpatialQuantMetadata | None:
        """What was done to the layers' channels, scales filled in; None where nothing was. Reads the layers' files."""
        scales: dict[str, tuple[float, ...]] = {}
        means: dict[str, tuple[tuple[float, ...], ...]] = {}
        alphas: dict[str, float] = {}
        folded: list[str] = []
        for name in self:
            part = self.spatial_of(name)
            if part is None:
                continue
            if name in part.folded:
                scales[name] = part.equalization_scales[name]
                folded.append(name)
            elif part.channel_equalization:
                stored = next(iter(self[name].tiles()))[1].equalization
                if stored is None:
                    raise MetadataError(f"{self.path}: {name!r} is said to be equalized, but holds no scales")
                scales[name] = tuple(stored.astype(float).tolist())
            means |= part.activation_means
            alphas |= part.alphas
        if not scales and not means:
            return None
        return SpatialQuantMetadata(True, bool(scales), bool(means), scales, means, alphas, tuple(folded))

    def spatial_of(self, name: str) -> SpatialQuantMetadata | None:
        """Return what was done to one layer's channels, as its file says it; None where nothing was."""
        entry = self._manifest.tensors[name]
        if not entry.get("spatial"):
            return None
        self._files.mapped(entry["file"])  # which checks its hash
        data = ParquetV2Extended(self.path / entry["file"]).metadata.get("spatial")
        part = _metadata(SpatialQuantMetadata, data, f"spatial of {name!r} in {entry['file']!r}")
        of_layer: SpatialQuantMetadata = part.of_layer(name)
        return of_layer

    def dequantize(
        self, name: str, dtype: DTypeLike | str | None = None, out: NDArray[Any] | None = None, n_threads: int = 0
    ) -> ArrayLike:
        """Return one tensor in its original shape; see `LazyTensor.dequantize`."""
        return self[name].dequantize(dtype, out, n_threads)

    def weights(self) -> Mapping[str, NDArray[np.float32]]:
        """Return every tensor dequantized to float32, by name; for running a small model."""
        return {name: np.asarray(self[name].dequantize("float32")) for name in self}

    def stats(self) -> pa.Table:
        """Return `stats.parquet` as an Arrow table: one row per tensor, its error at every width tried."""
        import pyarrow.parquet as pq  # noqa: PLC0415 - loads on first use

        with arrow_file(self._files.path("stats.parquet")) as file:
            return pq.ParquetFile(file, page_checksum_verification=True).read()

    def file_path(self, name: str) -> Path:
        """Return the path of a copied file of the model (config, tokenizer), its hash checked."""
        return self._files.path(name)

    def layer_metadata(self, name: str) -> dict[str, Any]:
        """Return what the data file of a quantized tensor says beside its tiles: time_aware, spatial, activation_stats.

        Only what is there; nothing for a kept tensor.
        """
        tensor = self[name]
        if tensor.kept:
            return {}
        metadata = ParquetV2Extended(self._files.path(tensor.file, hashed=False)).metadata
        keys = ("time_aware", "spatial", "activation_stats")
        return {key: metadata[key] for key in keys if metadata.get(key) is not None}

    def verify(self) -> int:
        """Check every file and row hash; return the number of tensors, raise `ValidationError` at a mismatch."""
        for name in self._manifest.files:
            self._files.path(name, hashed=True)
        for name in {t["file"] for t in self._manifest.tensors.values()}:
            for _ in ParquetV2Extended(self.path / name).rows():
                pass
        return len(self)

    def payloads(self, tensor: LazyTensor, reference: TileReference) -> dict[str, memoryview]:
        """Map the payloads of one tile; read them through the Parquet library where the offsets do not hold."""
        view = memoryview(self._files.mapped(tensor.file))
        found: dict[str, memoryview] = {}
        for column, (offset, nbytes) in reference.ranges.items():
            prefix = int.from_bytes(view[offset - 4 : offset], "little") if 4 <= offset <= len(view) - nbytes else -1
            if nbytes < 0 or prefix != nbytes:
                return self._read_payloads(tensor, reference)
            found[column] = view[offset : offset + nbytes]
        return found

    def _read_payloads(self, tensor: LazyTensor, reference: TileReference) -> dict[str, memoryview]:
        for row in ParquetV2Extended(self.path / tensor.file).rows(tensor.name):
            if (row["row_start"], row["row_count"]) == (reference.row_start, reference.row_count):
                return {c: memoryview(row[c]) for c in reference.ranges if row[c] is not None}
        raise ValidationError(
            f"{tensor.file!r} holds no rows {reference.row_start}+{reference.row_count} of {tensor.name!r}"
        )

    def in_turn(self, names: Iterable[str]) -> Iterator[str]:
        """Yield names and drop each file's mapping after the last of its tensors; arrays that view it keep it alive."""
        names = list(names)
        last = {self[name].file: name for name in names}
        for name in names:
            yield name
            if last[self[name].file] == name:
                self._files.unmap(self[name].file)

    def close(self) -> None:
        """Drop the mappings; arrays that still view them keep theirs alive."""
        self._files.unmap_all()
        self._tensors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"QuantizedModel({str(self.path)!r}, {len(self)} tensors, {self.modality})"


def _input_bits(name: str, entry: Mapping[str, Any]) -> int:
    """Return the bits of a layer's rounded input, 0 for a float one."""
    bits = entry.get("activation_bit_width", 0)
    if bits not in (0, *ACTIVATION_BIT_WIDTHS):
        raise MetadataError(f"manifest entry of {name!r}: activation_bit_width {bits!r} is not 4 or 8")
    return int(bits)


def _metadata(kind: Any, data: Any, what: str) -> Any:
    """Return a metadata value from its JSON form, which comes from a file."""
    try:
        return kind.from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MetadataError(f"{what} is damaged: {type(error).__name__}: {error}; quantize again") from error


def open_committed(path: str | Path) -> QuantizedModel:
    """Open what a run has committed so far, finished or not; hashes of files are not checked.

    Raises
    ------
    ModelNotFoundError
        There is no run of ours.
    """
    folder = Path(path)
    if not (folder / JOURNAL_NAME).is_file():
        raise ModelNotFoundError(f"no run of arrowquant_nb has begun in {folder}")
    commits, _ = read_commits(folder / JOURNAL_NAME)
    tensors = {name: entry for commit in commits.values() for name, entry in commit.tensors.items()}
    files = {commit.file: {"nbytes": commit.nbytes, "xxh3": commit.xxh3} for commit in commits.values()}
    return QuantizedModel(folder, Manifest({"config": {}, "modality": "not known"}, tensors, files), "off")


def open_quantized(path: str | Path | None, verify: Verify = "lazy") -> QuantizedModel:
    """Open a finished model folder.

    Parameters
    ----------
    path : folder that holds `manifest.json`; None, as in the result of a run that kept none, is not found.
    verify : "lazy" hashes a file at its first access, "full" everything now, "off" nothing.

    Raises
    ------
    ModelNotFoundError, ValidationError, MetadataError, ConfigurationError
        No such model, damaged, newer than this version, or an unknown `verify`.
    """
    return _open(path, verify, private=False)


def open_privately(path: str | Path, verify: Verify = "lazy") -> QuantizedModel:
    """Do as `open_quantized`, but map the files copy-on-write: arrays over them may be written, the files stay."""
    return _open(path, verify, private=True)


def _open(path: str | Path | None, verify: Verify, *, private: bool) -> QuantizedModel:
    if verify not in ("lazy", "full", "off"):
        raise ConfigurationError(f"verify must be 'lazy', 'full' or 'off', got {verify!r}")
    if path is None:
        raise ModelNotFoundError("no model folder was kept: give output=FOLDER to quantize_pipeline")
    folder = Path(path)
    if not folder.is_dir():
        raise ModelNotFoundError(f"there is no model folder at {folder}")
    model = QuantizedModel(folder, read_manifest(folder), verify, private=private)
    if verify == "full":
        model.verify()
    return model
