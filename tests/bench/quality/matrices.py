"""Rows of the matrix table: one heavy-tailed matrix, no calibration, ours and every peer's formats."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peer_runs
from environments import Peer
from figures import heavy_tailed, output_error, relative_error, tokens

from arrowquant_nb import quantize_tensor

# label, bits, group, method, scale_format, rotation, gain correction
OURS = (
    ("rtn g64", 8, 64, "rtn", "float16", "none"),
    ("uls g64", 8, 64, "uls", "float16", "none"),
    ("uls g64 hadamard", 8, 64, "uls", "float16", "hadamard"),
    ("uls g32", 8, 32, "uls", "float16", "none"),
    ("rtn g64", 4, 64, "rtn", "float16", "none"),
    ("mse g64", 4, 64, "mse", "float16", "none"),
    ("hqq g64", 4, 64, "hqq", "float16", "none"),
    ("uls g64", 4, 64, "uls", "float16", "none"),
    ("uls g64 hadamard", 4, 64, "uls", "float16", "hadamard"),
    ("uls k g32", 4, 32, "uls", "k", "none"),
    ("uls k g32 hadamard", 4, 32, "uls", "k", "hadamard"),
    ("uls k g64", 4, 64, "uls", "k", "none"),
    ("uls k g64 hadamard", 4, 64, "uls", "k", "hadamard"),
    ("rtn g64", 2, 64, "rtn", "float16", "none"),
    ("hqq g64", 2, 64, "hqq", "float16", "none"),
    ("r2q g64", 2, 64, "r2q", "float16", "none"),
    ("uls g64", 2, 64, "uls", "float16", "none"),
    ("uls g32", 2, 32, "uls", "float16", "none"),
    ("uls k g32 hadamard", 2, 32, "uls", "k", "hadamard"),
    ("uls k g16", 2, 16, "uls", "k", "none"),
    ("uls k g16 hadamard", 2, 16, "uls", "k", "hadamard"),
)
RUNS = 3


def rows(peers: dict[Peer, tuple[Path | None, str]], scratch: Path) -> Iterator[dict[str, object]]:
    """Yield one row per format: bits per weight, both errors, processor seconds per GB of float32."""
    weight, x = heavy_tailed(), tokens()
    for case in OURS:
        yield _ours(weight, x, *case)
    for peer, (python, note) in peers.items():
        for answer in peer_runs.answers(peer, python, note, {"matrix": weight}, scratch, timed=True):
            yield _measured(answer, weight, x)


def _ours(
    weight: np.ndarray, x: np.ndarray, label: str, bits: int, group: int, method: str, scale_format: str, rotation: str
) -> dict[str, object]:
    seconds = []
    for _ in range(RUNS):
        began = time.process_time()
        tensor = quantize_tensor(
            weight, bits, group, method, gain_correction=False, scale_format=scale_format, rotation=rotation
        )
        seconds.append(time.process_time() - began)
    decoded = tensor.dequantize()
    return {
        "by": "arrowquant_nb",
        "format": label,
        "bits": bits,
        "bits_per_weight": tensor.bits_per_weight,
        "relative_error": relative_error(weight, decoded),
        "output_error": output_error(weight, decoded, x),
        "processor_s_per_gb": min(seconds) / (weight.nbytes / 1e9),
    }


def _measured(answer: dict[str, object], weight: np.ndarray, x: np.ndarray) -> dict[str, object]:
    row = {key: answer[key] for key in ("by", "format", "bits", "bits_per_weight", "failed") if key in answer}
    if "file" in answer:
        decoded = np.load(str(answer["file"]))
        row |= {
            "relative_error": relative_error(weight, decoded),
            "output_error": output_error(weight, decoded, x),
            "processor_s_per_gb": float(answer["processor_s"]) / (weight.nbytes / 1e9),
        }
    return row
