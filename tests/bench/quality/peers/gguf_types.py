"""The types that gguf's own NumPy code can write; it reads K-quants, but does not make them."""

from importlib.metadata import version

import numpy as np
from gguf import GGMLQuantizationType, quants
from protocol import Format, serve


def form(name: str, bits: int) -> Format:
    """One type of gguf; rows of less than a block are none."""
    kind = GGMLQuantizationType[name]
    return Format(
        name,
        bits,
        lambda weight: quants.quantize(weight, kind),
        lambda stored, _: np.asarray(quants.dequantize(stored, kind)),
        lambda stored, weight: 8 * stored.nbytes / weight.size,
    )


serve(f"gguf {version('gguf')}", [form("Q8_0", 8), form("Q4_0", 4), form("Q4_1", 4), form("MXFP4", 4)])
