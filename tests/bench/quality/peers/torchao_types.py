"""torchao's weight-only configurations that run on a processor."""

from importlib.metadata import version

import torch
from protocol import Format, serve
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

torch.set_num_threads(2)


def form(label: str, bits: int, config: object, extra: float) -> Format:
    """One configuration; `extra` bits per weight for scales and zero points, 0 where there is one scale per row."""

    def quantize(weight: object) -> object:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(torch.from_numpy(weight).clone(), requires_grad=False)
        quantize_(layer, config)
        return layer

    return Format(
        label, bits, quantize, lambda stored, _: stored.weight.dequantize().detach().float().numpy(),
        lambda _, weight: bits + (extra or 16 / weight.shape[1]),
    )  # fmt: skip


serve(
    f"torchao {version('torchao')}",
    [
        form("int8", 8, Int8WeightOnlyConfig(), 0.0),
        form("int4 g64", 4, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(64)), 20 / 64),
        form("int2 g64", 2, IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=PerGroup(64)), 18 / 64),
    ],
)
