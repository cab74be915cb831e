"""SD.Next's quantizer for diffusion models, plain and rotated."""

from importlib.metadata import version

import torch
from protocol import Format, serve
from sdnq.quantizer import sdnq_quantize_layer_weight

torch.set_num_threads(2)


def form(kind: str, bits: int, group: int, **options: bool) -> Format:
    """One integer type; group 0 leaves the size to the package."""

    def quantize(weight: object) -> object:
        values = torch.from_numpy(weight).clone()
        return sdnq_quantize_layer_weight(
            values,
            layer_class_name="Linear",
            weights_dtype=kind,
            group_size=group,
            torch_dtype=torch.float32,
            **options,
        )

    def bits_per_weight(stored: object, weight: object) -> float:
        parts = [v for k, v in stored[1].items() if v is not None and k in ("scale", "zero_point")]
        return bits + 16 * sum(v.numel() for v in parts) / weight.size

    label = f"{kind} {f'g{group}' if group else 'auto'}{' hadamard' if options.get('use_hadamard') else ''}"
    return Format(label, bits, quantize, lambda stored, _: stored[0](**stored[1]).float().numpy(), bits_per_weight)


serve(
    f"sdnq {version('sdnq')}",
    [
        form("int8", 8, 0),
        form("uint4", 4, 64),
        form("uint4", 4, 64, use_hadamard=True),
        form("uint2", 2, 64),
        form("uint2", 2, 32),
        form("uint2", 2, 32, use_hadamard=True),
    ],
)
