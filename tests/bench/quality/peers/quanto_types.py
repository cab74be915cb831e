"""optimum-quanto's weight types, by its two optimizers."""

from importlib.metadata import version

import torch
from optimum.quanto import AbsmaxOptimizer, HqqOptimizer, MaxOptimizer, qint2, qint4, qint8, quantize_weight
from protocol import Format, serve

torch.set_num_threads(2)


def rowwise() -> Format:
    """Eight bits, one scale per row."""

    def quantize(weight: object) -> object:
        values = torch.from_numpy(weight)
        scale = AbsmaxOptimizer()(values, qtype=qint8, axis=0)
        return quantize_weight(values, qtype=qint8, axis=0, scale=scale)

    return Format(
        "qint8", 8, quantize, lambda stored, _: stored.dequantize().numpy(), lambda _, weight: 8 + 16 / weight.shape[1]
    )


def grouped(kind: object, bits: int, optimizer: object, label: str) -> Format:
    """Groups of 64 with scale and shift."""

    def quantize(weight: object) -> object:
        values = torch.from_numpy(weight)
        scale, shift = optimizer(values, qtype=kind, axis=0, group_size=64)
        return quantize_weight(values, kind, 0, scale, shift, group_size=64, optimized=False)

    return Format(label, bits, quantize, lambda stored, _: stored.dequantize().numpy(), lambda _, __: bits + 32 / 64)


serve(
    f"optimum-quanto {version('optimum-quanto')}",
    [
        rowwise(),
        grouped(qint4, 4, MaxOptimizer(), "qint4 g64 max"),
        grouped(qint4, 4, HqqOptimizer(), "qint4 g64 hqq"),
        grouped(qint2, 2, MaxOptimizer(), "qint2 g64 max"),
    ],
)
