"""Half-quadratic quantization as its authors publish it, on the processor."""

from importlib.metadata import version

import torch
from hqq.core.quantize import Quantizer
from protocol import Format, serve

torch.set_num_threads(2)


def form(bits: int, group: int) -> Format:
    """Groups along the row, scale and zero point optimized."""
    return Format(
        f"g{group}",
        bits,
        lambda weight: Quantizer.quantize(
            torch.from_numpy(weight), nbits=bits, group_size=group, axis=1, device="cpu", compute_dtype=torch.float32,
            channel_wise=True, optimize=True, round_zero=False,
        ),
        lambda stored, _: Quantizer.dequantize(*stored).numpy(),
        lambda _, __: bits + 32 / group,
    )  # fmt: skip


serve(f"hqq {version('hqq')}", [form(8, 64), form(4, 64), form(2, 64), form(2, 32)])
