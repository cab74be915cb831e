"""bitsandbytes: NF4 with plain and with quantized block maxima, and its blockwise eight bits."""

from importlib.metadata import version

import bitsandbytes.functional as bnb
import torch
from protocol import Format, serve

torch.set_num_threads(2)


def nf4(double: bool) -> Format:
    """Blocks of 64; with `double` their maxima are one byte each under a float32 per 256."""
    return Format(
        f"nf4 b64{' double' if double else ''}",
        4,
        lambda weight: bnb.quantize_4bit(
            torch.from_numpy(weight), blocksize=64, quant_type="nf4", compress_statistics=double
        ),
        lambda stored, _: bnb.dequantize_4bit(*stored).numpy(),
        lambda _, __: 4 + (8 + 32 / 256) / 64 if double else 4 + 16 / 64,
    )


def blockwise() -> Format:
    """Eight bits in blocks of 64."""
    return Format(
        "int8 b64",
        8,
        lambda weight: bnb.quantize_blockwise(torch.from_numpy(weight), blocksize=64),
        lambda stored, _: bnb.dequantize_blockwise(*stored).numpy(),
        lambda _, __: 8 + 16 / 64,
    )


serve(f"bitsandbytes {version('bitsandbytes')}", [nf4(double=False), nf4(double=True), blockwise()])
