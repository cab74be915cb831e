"""The one error tree of the package; every message names the file, tensor or field and the fix.

ArrowQuantError
|- ConfigurationError   a config field, YAML key, environment variable or argument (also a ValueError)
|- ModelNotFoundError   a path or a bundled sample that is not there
|- MetadataError        modality, config.json, manifest, calibration or other records that cannot be used
|- CheckpointError      the source weights: damaged, hostile, unsupported, NaN, changed during the run
|- ShapeMismatchError   sizes that do not fit together (also a ValueError)
|- QuantizationError    layers that failed every gate, or a run that was stopped
|- ValidationError      a quantized model that does not match its original or its own hashes
`- OutputError          the output folder: full, locked, read-only, not ours
"""

__all__ = [
    "ArrowQuantError",
    "CheckpointError",
    "ConfigurationError",
    "MetadataError",
    "ModelNotFoundError",
    "OutputError",
    "QuantizationError",
    "ShapeMismatchError",
    "ValidationError",
]


class ArrowQuantError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigurationError(ArrowQuantError, ValueError):
    """A setting is unknown, out of range, contradictory or not available yet."""


class ModelNotFoundError(ArrowQuantError):
    """There is no model at the given path, or no bundled sample of that name."""


class MetadataError(ArrowQuantError):
    """A JSON or calibration file beside the weights is missing, malformed or says something unusable."""


class CheckpointError(ArrowQuantError):
    """The source weights are damaged, hostile, unsupported or changed while they were read."""


class ShapeMismatchError(ArrowQuantError, ValueError):
    """Array or buffer sizes do not fit together."""


class QuantizationError(ArrowQuantError):
    """One or more layers could not be quantized to the requested quality."""


class ValidationError(ArrowQuantError):
    """Stored data do not match their hashes, or a quantized model does not match its original."""


class OutputError(ArrowQuantError):
    """The output folder cannot be written, is locked by another run, or is not one of ours."""
