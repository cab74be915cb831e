"""What linear layers and convolutions over stored codes share: a weight, a bias, and how inputs are rounded."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.runtime.input_format import InputFormat
from arrowquant_nb.runtime.stored_weight import StoredWeight, form_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arrowquant_nb.export.folder_settings import FolderLayer
    from arrowquant_nb.quantizers.tensor import QuantizedTensor

__all__ = ["QuantizedLayer"]


class QuantizedLayer(torch.nn.Module):
    """A layer whose weight is stored as codes.

    Its linear layers and convolutions are also instances of torch's, by which other tools know them: peft puts
    adapters around them. What needs the float weight itself, such as merging an adapter, is refused by the weight.

    Parameters
    ----------
    form : how the weight is stored.
    inputs : how inputs are rounded; None = not at all.
    bias : whether there is one.
    dtype : of the bias, and what `weight.dtype` says.
    device : "meta" builds the layer without memory.
    name : the weight's name, for messages.
    """

    weight: StoredWeight
    inputs: InputFormat
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        form: FolderLayer,
        inputs: InputFormat | None = None,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        name: str = "",
    ) -> None:
        torch.nn.Module.__init__(self)  # not that of the layer of torch that a subclass is, too
        self.inputs = inputs or InputFormat()
        self.name = name or f"{type(self).__name__} {tuple(form.shape)}"
        self.weight = StoredWeight(form, dtype, device)
        values = torch.empty(form.shape[0], dtype=self.weight.dtype, device=device) if bias else None
        self.register_parameter("bias", None if values is None else torch.nn.Parameter(values, requires_grad=False))

    @classmethod
    def empty(cls, form: FolderLayer, inputs: InputFormat | None = None, **settings: Any) -> Self:
        """Return the layer on the meta device, to be filled by `load_state_dict(..., assign=True)`."""
        return cls(form, inputs, **{"device": "meta", **settings})

    @classmethod
    def from_arrays(
        cls,
        tensor: QuantizedTensor,
        bias: torch.Tensor | None = None,
        inputs: InputFormat | None = None,
        means: NDArray[np.float32] | None = None,
        **settings: Any,
    ) -> Self:
        """Return the layer over the arrays of a quantized tensor; writable arrays are shared, not copied.

        Parameters
        ----------
        tensor : codes and parameters.
        bias : float tensor (outputs,), or None.
        inputs : how inputs are rounded.
        means : what is taken off inputs before they are rounded, float32 (time groups, columns).
        settings : `dtype` and `name`; of a convolution also stride, padding, dilation, groups, padding_mode.

        """
        form = form_of(tensor, 0 if means is None else len(means))
        layer = cls(form, inputs, bias=bias is not None, device="meta", **settings)
        layer.weight.set_quantized(tensor, means, layer.name)
        if bias is not None:
            if bias.shape != (form.shape[0],):
                raise ShapeMismatchError(
                    f"{layer.name}: a bias of shape {tuple(bias.shape)} does not fit {form.shape[0]} outputs"
                )
            layer.bias = torch.nn.Parameter(bias.detach().to(layer.weight.dtype), requires_grad=False)
        return layer

    @property
    def form(self) -> FolderLayer:
        """How the weight is stored."""
        return self.weight.form

    def described(self) -> FolderLayer:
        """Return how the weight is stored and how the inputs are rounded, as the exported folder says it."""
        inputs = self.inputs
        if inputs.is_float:
            return replace(self.form, activation_bit_width=0, activation_rule="per_token")
        rule = "per_group" if inputs.rule == "per_group" else "per_token"
        return replace(self.form, activation_bit_width=inputs.bit_width, activation_rule=rule)

    @abstractmethod
    def float_form(self) -> tuple[type[torch.nn.Module], dict[str, Any]]:
        """Return the class of torch that this layer stands for, and the arguments that build one like it."""

    def check_floats(self, x: torch.Tensor) -> None:
        """Refuse inputs of another kind, whose outputs would be cut to integers, or to their real parts.

        Raises
        ------
        ConfigurationError
            Inputs that are no real floats, or not every one of which is there.

        """
        if not x.is_floating_point():
            raise ConfigurationError(f"{self.name}: inputs of dtype {x.dtype}; give floats, such as x.float()")
        if x.layout not in (torch.strided, torch.jagged):
            raise ConfigurationError(f"{self.name}: inputs of layout {x.layout}; give dense ones, such as x.to_dense()")

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the float weight, a new tensor; see `StoredWeight.dequantize`."""
        return self.weight.dequantize(dtype)

    def extra_repr(self) -> str:
        """Say what happens to inputs, and whether there is a bias."""
        inputs = "float inputs" if self.inputs.is_float else f"INT{self.inputs.bit_width} inputs {self.inputs.rule}"
        return f"{inputs}, bias={self.bias is not None}"
