"""Run a quantized model in torch: modules that hold packed codes, and the loader that swaps them into any model.

    with open_privately("digits-int4") as folder:
        model = load_into(DiTTransformer2DModel.from_config(config), folder)

`stored_weight` holds the codes, `input_format` says how inputs are rounded and `input_rules` so of a folder, `time`
carries the timestep from a model's `followed_forward` to its layers, `graph_time` so in what `torch.export` records;
`modules` and `embedding` are the layers, over `quantized_layer`. `product` multiplies, by `kernel_calls` on the
processor, else by `decoding` and `rounding` in operations of torch, whose compiler `tracing` tells of them. `loading`
swaps, `float_layers` swaps back, `plain_weights` gives floats without a model. torch is imported with the first name
that needs it. Knows nothing of how codes were chosen, nor of diffusers' own loaders.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from arrowquant_nb.errors import ConfigurationError

if TYPE_CHECKING:
    from arrowquant_nb.runtime.embedding import QuantizedEmbedding
    from arrowquant_nb.runtime.followed_forward import follow_time
    from arrowquant_nb.runtime.input_format import InputFormat
    from arrowquant_nb.runtime.loading import load_into
    from arrowquant_nb.runtime.modules import QuantizedConv1d, QuantizedConv2d, QuantizedConv3d, QuantizedLinear
    from arrowquant_nb.runtime.plain_weights import dequantize_state_dict
    from arrowquant_nb.runtime.time import ModelTime, current_time, time_context

_HOMES = {
    "InputFormat": "input_format",
    "ModelTime": "time",
    "QuantizedConv1d": "modules",
    "QuantizedConv2d": "modules",
    "QuantizedConv3d": "modules",
    "QuantizedEmbedding": "embedding",
    "QuantizedLinear": "modules",
    "current_time": "time",
    "dequantize_state_dict": "plain_weights",
    "follow_time": "followed_forward",
    "load_into": "loading",
    "time_context": "time",
}

__all__ = [
    "InputFormat",
    "ModelTime",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConv3d",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "current_time",
    "dequantize_state_dict",
    "follow_time",
    "load_into",
    "time_context",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigurationError(
            f"{name} needs torch, which is not installed: pip install 'arrowquant_nb[torch]'"
        ) from error
    globals()[name] = value
    return value
