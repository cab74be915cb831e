"""Linear layers and convolutions over stored codes, in place of torch's own.

A convolution with float inputs decodes its weight for the call and lets torch convolve; with rounded inputs it becomes
a product of the windows' rows, as calibration saw them.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional

from arrowquant_nb import _kernels
from arrowquant_nb.errors import ShapeMismatchError
from arrowquant_nb.runtime.product import multiply, multiply_groups
from arrowquant_nb.runtime.quantized_layer import QuantizedLayer

if TYPE_CHECKING:
    from arrowquant_nb.export.folder_settings import FolderLayer
    from arrowquant_nb.runtime.input_format import InputFormat

__all__ = ["QuantizedConv1d", "QuantizedConv2d", "QuantizedConv3d", "QuantizedLinear"]

_FloatLinear = torch.nn.Linear
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_multiply_ready = _kernels.multiply_ready  # by names of this module: of one token, each look further on shows


class QuantizedLinear(QuantizedLayer, torch.nn.Linear):
    """``y = x W^T + b`` over packed codes; takes the place of `torch.nn.Linear`. See `QuantizedLayer` for its making.

    On the processor the weight is never decoded as a whole: kernels multiply by the codes. Inputs may be float32,
    bfloat16 or float16; sums are float32. On other devices, and where gradients of the inputs are recorded, the weight
    is decoded for the call.
    """

    def __init__(self, form: FolderLayer, inputs: InputFormat | None = None, **settings: Any) -> None:
        super().__init__(form, inputs, **settings)
        if len(form.shape) != 2:
            raise ShapeMismatchError(f"{self.name}: a weight of shape {form.shape} is none of a linear layer")
        self.out_features, self.in_features = form.shape

    def float_form(self) -> tuple[type[torch.nn.Module], dict[str, Any]]:
        """Return `torch.nn.Linear` and its sizes."""
        sizes = {"in_features": self.in_features, "out_features": self.out_features}
        return torch.nn.Linear, {**sizes, "bias": self.bias is not None}

    def __call__(self, *given: Any, **named: Any) -> torch.Tensor:
        """Call the layer as any module; without hooks, the product that is kept ready needs none of what torch does.

        A subclass's own `forward` is called, and what took the place of torch's call.
        """
        if not named and len(given) == 1 and not _is_dynamo_compiling():
            is_ours = type(self).forward is _forward and _FloatLinear.__call__ is _call
            at_once: torch.Tensor | None = _multiply_ready(self.__dict__, given[0], True) if is_ours else None
            if at_once is not None:
                return at_once
        y: torch.Tensor = super().__call__(*given, **named)
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output in the dtype of x.

        Parameters
        ----------
        x : float tensor (..., in_features); with a timestep per sample, the first axis is the batch.

        """
        at_once: torch.Tensor | None = None if _is_dynamo_compiling() else _multiply_ready(self.__dict__, x)
        if at_once is not None:
            return at_once
        if x.shape[-1:] != (self.in_features,):
            raise ShapeMismatchError(
                f"{self.name}: inputs of shape {tuple(x.shape)} do not have {self.in_features} columns"
            )
        y = multiply(self, x)
        return y if y.dtype == x.dtype else y.to(x.dtype)


_forward = QuantizedLinear.forward
_call = torch.nn.Module._wrapped_call_impl  # noqa: SLF001 - also where another was put before it when this was imported


class _QuantizedConvolution(QuantizedLayer):
    n_axes: ClassVar[int]
    float_class: ClassVar[type[torch.nn.Module]]

    def __init__(
        self,
        form: FolderLayer,
        inputs: InputFormat | None = None,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        **settings: Any,
    ) -> None:
        super().__init__(form, inputs, **settings)
        if len(form.shape) != self.n_axes + 2:
            raise ShapeMismatchError(f"{self.name}: a weight of shape {form.shape} is none of {type(self).__name__}")
        self.in_channels, self.out_channels = form.shape[1] * groups, form.shape[0]
        self.kernel_size = form.shape[2:]
        self.stride, self.dilation = self._axes(stride), self._axes(dilation)
        self.padding = padding if isinstance(padding, str) else self._axes(padding)
        self.groups = groups
        self.padding_mode = padding_mode

    def _axes(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * self.n_axes if isinstance(value, int) else tuple(value)

    def float_form(self) -> tuple[type[torch.nn.Module], dict[str, Any]]:
        """Return torch's convolution and its settings."""
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        settings = {name: getattr(self, name) for name in (*names, "padding_mode")}
        return self.float_class, {**settings, "bias": self.bias is not None}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output in the dtype of x, (batch, out_channels, ...) for x (batch, in_channels, ...)."""
        batched = x.ndim == self.n_axes + 2
        if x.ndim not in (self.n_axes + 1, self.n_axes + 2) or x.shape[-1 - self.n_axes] != self.in_channels:
            raise ShapeMismatchError(
                f"{self.name}: inputs of shape {tuple(x.shape)} do not have {self.in_channels} channels"
            )
        self.check_floats(x)
        padded = self._padded(x if batched else x[None])
        y = self._convolved(padded) if self.inputs.is_float else self._multiplied(padded)
        y = y.to(x.dtype)
        return y if batched else y[0]

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.padding, str):
            total = [
                d * (k - 1) if self.padding == "same" else 0
                for d, k in zip(self.dilation, self.kernel_size, strict=True)
            ]
            sides = [(n // 2, n - n // 2) for n in total]
        else:
            sides = [(n, n) for n in self.padding]
        if not any(chain.from_iterable(sides)):
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(x, list(chain.from_iterable(reversed(sides))), mode=mode)

    def _convolved(self, x: torch.Tensor) -> torch.Tensor:
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[self.n_axes - 1]
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return convolve(x, self.dequantize(x.dtype), bias, self.stride, 0, self.dilation, self.groups)

    def _multiplied(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply the rows of all windows, (batch, windows, channels x kernel)."""
        windows = x
        for axis, (kernel, stride, dilation) in enumerate(
            zip(self.kernel_size, self.stride, self.dilation, strict=True)
        ):
            windows = windows.unfold(axis + 2, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        places = windows.shape[2 : 2 + self.n_axes]
        order = (0, *range(2, 2 + self.n_axes), 1, *range(2 + self.n_axes, windows.ndim))
        rows, columns = (len(x), places.numel()), self.form.layout.columns
        windows = windows.permute(order)
        if self.groups == 1:
            y = multiply(self, windows.reshape(*rows, columns))
        else:
            y = multiply_groups(self, windows.reshape(*rows, self.groups, columns))
        return y.transpose(1, 2).reshape(len(x), self.out_channels, *places)


class QuantizedConv1d(_QuantizedConvolution, torch.nn.Conv1d):
    """Takes the place of `torch.nn.Conv1d`."""

    n_axes = 1
    float_class = torch.nn.Conv1d


class QuantizedConv2d(_QuantizedConvolution, torch.nn.Conv2d):
    """Takes the place of `torch.nn.Conv2d`."""

    n_axes = 2
    float_class = torch.nn.Conv2d


class QuantizedConv3d(_QuantizedConvolution, torch.nn.Conv3d):
    """Takes the place of `torch.nn.Conv3d`."""

    n_axes = 3
    float_class = torch.nn.Conv3d
