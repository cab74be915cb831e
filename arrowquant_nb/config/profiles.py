"""What the settings can be: fixed words, and the value of every field in each profile.

Tables only. Knows nothing of fields, sources, files or models.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = [
    "BASE_MODE",
    "FLOAT16_GROUP_SIZES",
    "K_GROUP_SIZES",
    "K_METHODS",
    "PROFILES",
    "DeploymentProfile",
    "Modality",
    "QuantMethod",
    "Rotation",
    "ScaleFormat",
]


class DeploymentProfile(StrEnum):
    """A named set of defaults: smallest, balanced or closest to the original."""

    EDGE = "edge"
    LOCAL = "local"
    CLOUD = "cloud"


class Modality(StrEnum):
    """What the model makes."""

    TEXT = "text"
    CODE = "code"
    IMAGE = "image"
    AUDIO = "audio"


class QuantMethod(StrEnum):
    """How codes are chosen; `auto` leaves it to the strategy."""

    AUTO = "auto"
    RTN = "rtn"
    MSE = "mse"
    ULS = "uls"
    HQQ = "hqq"
    R2Q = "r2q"
    GPTQ = "gptq"


class ScaleFormat(StrEnum):
    """How scales are stored: one float16 per group, or small integers under a float16 per 256 weights (`k`)."""

    FLOAT16 = "float16"
    K = "k"


class Rotation(StrEnum):
    """Orthogonal mixing of the input axis before quantization, undone at dequantize."""

    NONE = "none"
    HADAMARD = "hadamard"
    AUTO = "auto"


BASE_MODE: Final = "base_mode"

K_GROUP_SIZES: Final[Mapping[int, tuple[int, ...]]] = MappingProxyType({2: (16, 32), 4: (32, 64)})
"""Bit width -> group sizes that scale format `k` has: those of llama.cpp's Q2_K and Q4_K blocks, and twice that."""
K_METHODS: Final = ("auto", "uls", "gptq")
"""Methods that have scale format `k`."""
FLOAT16_GROUP_SIZES: Final[Mapping[str, int]] = MappingProxyType({"edge": 32, "local": 64, "cloud": 64, BASE_MODE: 128})
"""Profile -> its group size where scales are float16."""

_LOCAL: Final[dict[str, object]] = {
    "bit_width": 4, "modality": None, "num_time_groups": 10, "group_size": 32, "enable_time_aware": True,
    "enable_spatial": True, "fold_equalization": True, "min_accuracy": 0.98, "calibration_samples": 128,
    "deployment_profile": "local",
    "fail_fast": False, "num_threads": 0, "activation_bit_width": None, "min_output_sqnr_db": None,
    "min_network_sqnr_db": None, "method": "auto",
    "scale_format": "k", "rotation": "none", "low_rank": 0, "gain_correction": True,
    "skip_sensitive_layers": False, "sensitive_layer_names": (), "sensitive_layer_patterns": (),
    "layer_bit_widths": {}, "layer_methods": {}, "target_model_size_mb": None, "seed": 0,
}  # fmt: skip

PROFILES: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType({
    "edge": _LOCAL | {
        "bit_width": 2, "num_time_groups": 5, "group_size": 16, "enable_spatial": False, "min_accuracy": 0.90,
        "calibration_samples": 32, "deployment_profile": "edge",
    },
    "local": _LOCAL,
    "cloud": _LOCAL | {
        "bit_width": 8, "num_time_groups": 20, "group_size": 64, "scale_format": "float16", "min_accuracy": 0.999,
        "calibration_samples": 512, "deployment_profile": "cloud",
    },
    # Plain round-to-nearest, the bottom line that every other setting is compared with.
    BASE_MODE: _LOCAL | {
        "num_time_groups": 1, "group_size": 128, "enable_time_aware": False, "enable_spatial": False,
        "min_accuracy": 0.90, "method": "rtn", "scale_format": "float16", "gain_correction": False,
    },
})  # fmt: skip
