"""A torch module that holds a quantized weight as buffers of the stored dtypes; no float copy is kept.

What linear layers and convolutions share: the arrays, their moves between devices, what other code may ask of
`.weight`. Knows nothing of products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
import torch

from arrowquant_nb import _kernels
from arrowquant_nb.errors import ShapeMismatchError
from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor
from arrowquant_nb.runtime.decoding import decode, unrotate
from arrowquant_nb.runtime.input_format import InputFormat
from arrowquant_nb.runtime.layer_format import LayerFormat

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StoredLayer", "WeightFacts"]

NO_STATISTICS = LayerStatistics(0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class WeightFacts:
    """What `layer.weight` is: shape, dtype and device of a weight that is stored as codes. Not a tensor."""

    shape: torch.Size
    """Of the float weight."""
    dtype: torch.dtype
    """Of the layer's inputs and outputs."""
    device: torch.device
    """Where the codes are."""
    requires_grad: bool = False
    """Codes are not trained."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def size(self, axis: int | None = None) -> Any:
        """Shape, or the length of one axis."""
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of weights."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Return True: it stands for a float weight."""
        return True

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a quantized weight has no {name!r}: its codes are in the layer; use layer.dequantize()")


class StoredLayer(torch.nn.Module):
    """Packed codes, scales and zero points of one weight, and how its inputs are rounded.

    Parameters
    ----------
    form : what is stored; says the buffers' shapes and dtypes.
    inputs : how inputs are rounded; None = not at all.
    bias : whether there is one.
    dtype : of the bias, and what `.weight.dtype` says.
    device : "meta" builds the layer without memory.
    name : the weight's name, for messages.
    """

    form: LayerFormat
    inputs: InputFormat
    packed: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    low_rank_a: torch.Tensor
    low_rank_b: torch.Tensor
    equalization: torch.Tensor
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        form: LayerFormat,
        inputs: InputFormat | None = None,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        self.form = form
        self.inputs = inputs or InputFormat()
        self.name = name or f"{type(self).__name__} {tuple(form.shape)}"
        self.dtype = dtype or torch.get_default_dtype()
        for buffer, (shape, kind) in form.buffers().items():
            self.register_buffer(buffer, torch.empty(shape, dtype=getattr(torch, kind), device=device))
        values = torch.empty(form.shape[0], dtype=self.dtype, device=device) if bias else None
        self.register_parameter("bias", None if values is None else torch.nn.Parameter(values, requires_grad=False))

    @classmethod
    def empty(cls, form: LayerFormat, inputs: InputFormat | None = None, **settings: Any) -> Self:
        """Return the layer on the meta device, to be filled by `load_state_dict(..., assign=True)`."""
        return cls(form, inputs, device="meta", **settings)

    @classmethod
    def from_arrays(
        cls,
        tensor: QuantizedTensor,
        bias: torch.Tensor | None = None,
        inputs: InputFormat | None = None,
        **settings: Any,
    ) -> Self:
        """Return the layer over the arrays of a quantized tensor; writable arrays are shared, not copied.

        Parameters
        ----------
        tensor : codes and parameters.
        bias : float tensor (outputs,), or None.
        inputs : how inputs are rounded.
        settings : `dtype` and `name`; of a convolution also stride, padding, dilation, groups, padding_mode.

        """
        form = LayerFormat.of_tensor(tensor)
        layer = cls(form, inputs, bias=bias is not None, device="meta", **settings)
        layer.set_arrays({name: getattr(tensor, name) for name in form.buffers()})
        if bias is not None:
            if bias.shape != (form.shape[0],):
                raise ShapeMismatchError(
                    f"{layer.name}: a bias of shape {tuple(bias.shape)} does not fit {form.shape[0]} outputs"
                )
            layer.bias = torch.nn.Parameter(bias.detach().to(layer.dtype), requires_grad=False)
        return layer

    def set_arrays(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Put arrays of the declared shapes and dtypes into the buffers; no copy where torch can write to them."""
        for name, (shape, kind) in self.form.buffers().items():
            array = arrays[name]
            if array.shape != shape or str(array.dtype) != kind:
                raise ShapeMismatchError(
                    f"{self.name}: {name} is {array.dtype} {array.shape}, expected {kind} {shape}: the arrays belong "
                    "to another layer"
                )
            usable = array.flags.writeable and array.flags.c_contiguous and array.flags.aligned
            setattr(self, name, torch.from_numpy(array if usable else np.array(array, order="C")))

    @property
    def weight(self) -> WeightFacts:
        """Shape, dtype and device of the weight; `dequantize` gives the values."""
        return WeightFacts(torch.Size(self.form.shape), self.dtype, self.packed.device)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return the stored buffers by name."""
        return {name: getattr(self, name) for name in self.form.buffers()}

    def quantized(self) -> QuantizedTensor:
        """Return the weight as a `QuantizedTensor` over the same memory; only on the processor."""
        arrays = {name: buffer.detach().numpy() for name, buffer in self.arrays().items()}
        return QuantizedTensor(
            shape=self.form.shape,
            bit_width=self.form.bit_width,
            group_size=self.form.group_size,
            method=METHOD_OF_GRID[self.form.grid],
            grid=self.form.grid,
            dtype="float32",
            statistics=NO_STATISTICS,
            rotation_seed=self.form.rotation_seed,
            **arrays,
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the float weight in its shape, a new tensor of `dtype` (default: that of the layer)."""
        if self.packed.device.type == "cpu" and not torch.compiler.is_compiling():
            values = torch.from_numpy(
                self.quantized().dequantize(n_threads=_kernels.resolve_threads(torch.get_num_threads()))
            )
        else:
            values = decode(self.form, self.arrays())
            if self.form.rotation_seed is not None:
                values = unrotate(values, self.form.rotation_seed)
            if self.form.low_rank:
                values = values + self.low_rank_a.float() @ self.low_rank_b.float()
            if self.form.equalization is not None:
                values = values / self.equalization.float()
        return values.reshape(self.form.shape).to(dtype or self.dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move everything, but cast the bias only: codes and scales keep the dtype they are stored in."""
        stored = self.arrays()
        for name in stored:
            del self._buffers[name]
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            for name, buffer in stored.items():
                moved = fn(buffer)
                stored[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        finally:
            self._buffers.update(stored)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device)).dtype
        return self

    def extra_repr(self) -> str:
        """One line: shape, width and grid, and what happens to inputs."""
        form = self.form
        around = ("" if form.rotation_seed is None else ", rotated") + (
            f", rank {form.low_rank}" if form.low_rank else ""
        )
        inputs = "" if self.inputs.is_float else f", INT{self.inputs.bit_width} inputs {self.inputs.rule}"
        return (
            f"{'x'.join(map(str, form.shape))}, INT{form.bit_width} {form.grid} g{form.group_size}{around}{inputs}, "
            f"bias={self.bias is not None}"
        )


METHOD_OF_GRID = {"zero_point": "rtn", "minimum": "uls", "k": "uls", "levels": "r2q"}
"""A method that gives each grid; decoding does not ask which one it was."""
