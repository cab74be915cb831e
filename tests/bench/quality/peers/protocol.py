"""What every peer's script shares: read arrays, quantize each in each format, write back what it decodes to.

A script runs in the peer's own environment as `python peers/NAME.py REQUEST.json`; it imports nothing of ours.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ENOUGH_S = 1.0
"""Processor seconds after which a speed is not measured again."""


class Format(NamedTuple):
    """One way in which a peer stores weights."""

    label: str
    bits: int
    """2, 4 or 8: the family it is compared in."""
    quantize: Callable[[np.ndarray], object]
    """From float32 (rows, columns) to whatever the peer stores."""
    decode: Callable[[object, np.ndarray], np.ndarray]
    """From that, and an array of the original shape, to float32."""
    bits_per_weight: Callable[[object, np.ndarray], float]
    """Codes, scales and zero points; scales count 16 bits where the peer keeps 32 without need."""


def serve(version: str, formats: list[Format]) -> None:
    """Answer the request that the command line names; a format that fails is a row that says why."""
    request = json.loads(Path(sys.argv[1]).read_text())
    rows = []
    for number, entry in enumerate(formats):
        for name, file in request["arrays"].items():
            weight = np.load(file)
            target = Path(request["folder"], f"{number}-{len(rows)}.npy")
            row = {"format": entry.label, "bits": entry.bits, "array": name}
            try:
                stored, seconds = _timed(entry, weight, request["timed"])
                decoded = entry.decode(stored, weight)
                row["bits_per_weight"] = float(entry.bits_per_weight(stored, weight))
                np.save(target, np.ascontiguousarray(decoded, np.float32).reshape(weight.shape))
                row |= {"file": str(target), "processor_s": seconds, "nbytes": weight.nbytes}
            except Exception as error:  # noqa: BLE001 - the reason is the result
                row["failed"] = f"{type(error).__name__}: {error}"[:200]
            rows.append(row)
    Path(request["answer"]).write_text(json.dumps({"version": version, "rows": rows}))


def _timed(entry: Format, weight: np.ndarray, timed: bool) -> tuple[object, float]:
    """Return the stored form and the least processor seconds of up to three runs."""
    seconds: list[float] = []
    while True:
        began = time.process_time()
        stored = entry.quantize(weight)
        seconds.append(time.process_time() - began)
        if not timed or len(seconds) == 3 or sum(seconds) > ENOUGH_S:
            return stored, min(seconds)
