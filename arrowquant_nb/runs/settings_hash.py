"""What decides the bytes that are stored of a tensor, beside its weights, as one hash.

An earlier run's file is taken over where this and the hash of the weights are the same.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from arrowquant_nb.quantizers.layout import LEAST_SQUARES_METHODS

if TYPE_CHECKING:
    from arrowquant_nb.core.task import LayerTask

# Raised whenever the bytes that a setting produces change.
ALGORITHM_VERSION = 5


def settings_hash(task: LayerTask, facts: dict[str, Any], source_file: str, calibration: str) -> str:
    """Hash of everything but the weights that decides what is stored for a tensor, its manifest entry included."""
    settings = {
        "facts": facts,
        "source_file": source_file,
        "algorithm": ALGORITHM_VERSION,
        "name": task.name,
        "shape": list(task.shape),
        "dtype": task.dtype,
        "bit_width": task.bit_width,
        "group_size": task.group_size,
        "methods": task.methods,
        "compensated": task.compensated,
        # What cannot change a byte of this tensor stays out: rtn and hqq have no gain, a kept tensor no gate.
        "gain_correction": task.gain_correction and any(m in LEAST_SQUARES_METHODS for m in task.methods),
        "min_accuracy": None if task.kept else task.min_accuracy,
        "scale_format": task.scale_format,
        "min_output_sqnr_db": None if task.kept else task.min_output_sqnr_db,
        "rotation": task.rotation,
        "seed": task.seed if task.rotation != "none" else None,
        "low_rank": task.low_rank,
        "role": task.role,
        "reason": task.reason,
        "rule": task.rule,
        "calibration": "" if task.kept else calibration,
        "activation_bit_width": task.activation_bit_width,
        # Only where it is, so that outputs without a size limit keep their hashes.
        **({"held": True} if task.held and not task.kept else {}),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
