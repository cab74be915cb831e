"""The manifest of a model folder: what is in it, where every payload lies, and the hash of every file.

Written last and hashed itself, so a folder with a valid manifest is a whole model. Holds no time, host, absolute
path, thread count or instruction set: equal inputs and settings give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arrowquant_nb.errors import MetadataError, ModelNotFoundError, ValidationError
from arrowquant_nb.storage.parquet_v2 import SCHEMA_VERSION

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST_NAME = "manifest.json"
FORMAT = "arrowquant-parquet-v2-extended"
MANIFEST_LIMIT_NBYTES = 256 << 20


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes
    ----------
    model : facts of the source (kind, class_name, component, files) and what was decided (modality, strategy, config).
    tensors : per tensor its file, shape, dtype, bit_width, grid (zero_point, minimum or k), method, group_size, source
        hash, and tile offsets.
    files : per file its nbytes and xxh3-128.
    """

    model: dict[str, Any]
    tensors: dict[str, dict[str, Any]]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the JSON bytes, sealed with a SHA-256 of the rest."""
        body = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "files": self.files,
            "tensors": self.tensors,
        }
        text = _canonical(body)
        return _canonical({**body, "sha256": hashlib.sha256(text).hexdigest()}) + b"\n"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8", "surrogatepass"
    )


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a finished model.

    Raises
    ------
    ModelNotFoundError
        There is none: not a model of ours, or a run that has not finished (the message says how to resume).
    ValidationError
        Its own hash or its form is wrong.
    MetadataError
        It is of a newer major version.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        hint = "not a model folder of arrowquant_nb"
        if (folder / "journal.jsonl").exists():
            hint = "its run has not finished: run the same command again to resume"
        elif any((folder / name).exists() for name in ("model_index.json", "config.json")):
            hint += (
                ", but one that from_pretrained loads; of what quantize_pipeline quantizes it keeps the model folder "
                "with output=FOLDER"
            )
        raise ModelNotFoundError(f"{folder} has no {MANIFEST_NAME} ({hint})")
    if path.stat().st_size > MANIFEST_LIMIT_NBYTES:
        raise ValidationError(f"{path} is larger than {MANIFEST_LIMIT_NBYTES >> 20} MiB")
    try:
        value = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
        if value.get("format") != FORMAT:
            raise ValidationError(f"{path} is not a manifest of arrowquant_nb (format {value.get('format')!r})")
        version = str(value["schema_version"])
        if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
            raise MetadataError(f"{path} has schema version {version}; this version reads 2.x: update arrowquant_nb")
        seal = value.pop("sha256")
        manifest = Manifest(dict(value["model"]), dict(value["tensors"]), dict(value["files"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValidationError(
            f"{path} is damaged: {type(error).__name__}: {error}; restore it or quantize again"
        ) from error
    if hashlib.sha256(_canonical(value)).hexdigest() != seal:
        raise ValidationError(f"{path} does not match its own SHA-256: restore it or quantize again")
    return manifest
