"""A quantized weight as a torch module: buffers of the stored dtypes, under the names of the exported folder.

It stands where a layer's `weight` parameter stood, so its state dict has `weight.packed`, `weight.scales` and so on,
and it answers what other code asks of a weight: shape, dtype, device. No float copy is kept. Knows no products.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch

from arrowquant_nb import _kernels
from arrowquant_nb.errors import ShapeMismatchError
from arrowquant_nb.export.folder_settings import FolderLayer
from arrowquant_nb.runtime.decoding import decode, unrotate
from arrowquant_nb.runtime.kernel_calls import GraphMatrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.tensor import QuantizedTensor
    from arrowquant_nb.runtime.input_format import InputFormat

__all__ = ["StoredWeight", "form_of", "kernels_take"]

_READ_AS_THEY_LIE = (torch.float32, torch.bfloat16)
_is_tracing = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)  # noqa: SLF001 - without a frame of Python
_n_modes = torch._C._len_torch_dispatch_stack  # noqa: SLF001 - nothing public tells
_forward_ad = torch.autograd.forward_ad
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # noqa: SLF001 - nothing public tells
_common = torch.nn.modules.module
_COMMON_HOOKS = (
    _common._global_forward_pre_hooks, _common._global_forward_hooks,  # noqa: SLF001 - a call looks at no other place
    _common._global_backward_pre_hooks, _common._global_backward_hooks,  # noqa: SLF001
)  # fmt: skip
_OF_TORCH = (
    torch.Tensor, *_READ_AS_THEY_LIE, torch.device("cpu"), torch.empty, torch.get_num_threads, _is_tracing,
    _n_modes, vars(_forward_ad), _COMMON_HOOKS,
)  # fmt: skip
"""What `_kernels.ready_product` uses of torch."""
ROW_PARTS = frozenset({"packed", "scales", "zero_points", "low_rank_a"})
"""Parts that have a row for each row of the matrix view."""


def form_of(tensor: QuantizedTensor, n_means: int = 0) -> FolderLayer:
    """Describe a quantized tensor, and the number of its time groups that have channel means."""
    return FolderLayer(
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        bit_width=tensor.bit_width,
        group_size=tensor.group_size,
        grid=tensor.grid,
        method=tensor.method,
        scale_dtype=str(tensor.layout.scale_dtype(tensor.scales)),
        rotation_seed=tensor.rotation_seed,
        low_rank=0 if tensor.low_rank_a is None else tensor.low_rank_a.shape[1],
        equalization=None if tensor.equalization is None else str(tensor.equalization.dtype),
        activation_means=n_means,
    )


class _Ready(NamedTuple):
    """A matrix for the kernels, and what it was made of: the same tensors at the same places."""

    parts: tuple[torch.Tensor, ...]
    places: tuple[int, ...]
    matrix: _kernels.Matrix

    def is_of(self, parts: tuple[torch.Tensor, ...]) -> bool:
        """Whether these are still they; `share_memory_`, `resize_` and `.data =` move what a tensor holds."""
        a, b, c = parts
        return (a is self.parts[0] and b is self.parts[1] and c is self.parts[2]) and self.places == (
            a.data_ptr(), b.data_ptr(), c.data_ptr(),
        )  # fmt: skip


class StoredWeight(torch.nn.Module):
    """Packed codes, scales, zero points and what goes around them.

    Parameters
    ----------
    form : what is stored; `parts` of it says the buffers' names, shapes and dtypes.
    dtype : of the float weight it stands for: what `.dtype` says, and `dequantize` returns.
    device : "meta" builds it without memory.
    """

    form: FolderLayer
    packed: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    low_rank_a: torch.Tensor
    low_rank_b: torch.Tensor
    equalization: torch.Tensor
    activation_means: torch.Tensor

    def __init__(
        self, form: FolderLayer, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.form = form
        self._is_plain = form.is_plain
        self._ready: _Ready | None = None
        self.ready_product: Any = None
        self.dtype = dtype or torch.get_default_dtype()
        for part, (shape, kind) in form.parts().items():
            self.register_buffer(part, torch.empty(shape, dtype=getattr(torch, kind), device=device))

    @property
    def shape(self) -> torch.Size:
        """Of the float weight."""
        return torch.Size(self.form.shape)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.packed.device

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.form.shape)

    def size(self, axis: int | None = None) -> Any:
        """Shape, or the length of one axis."""
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        """Return the number of axes."""
        return len(self.form.shape)

    def numel(self) -> int:
        """Return the number of weights."""
        return math.prod(self.form.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that are stored."""
        return sum(part.nbytes for part in self.arrays().values())

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return the buffers by name."""
        return {part: getattr(self, part) for part in self.form.parts()}

    def set_quantized(self, tensor: QuantizedTensor, means: NDArray[np.float32] | None, name: str) -> None:
        """Put a quantized tensor of the declared form, and the means of its inputs, into the buffers."""
        arrays = {part: getattr(tensor, part) for part in self.form.parts() if part != "activation_means"}
        self.set_arrays(arrays if means is None else {**arrays, "activation_means": means}, name)

    def set_arrays(self, arrays: dict[str, NDArray[Any]], name: str) -> None:
        """Put arrays of the declared shapes and dtypes into the buffers; no copy where torch can write to them."""
        self.form.check(name, {part: (array.shape, str(array.dtype)) for part, array in arrays.items()})
        for part, array in arrays.items():
            usable = array.flags.writeable and array.flags.c_contiguous and array.flags.aligned
            setattr(self, part, torch.from_numpy(array if usable else np.array(array, order="C")))

    def brought(self) -> Mapping[str, torch.Tensor]:
        """Return the buffers to compute with, brought by the hooks of offloading where there are any."""
        arrays: Mapping[str, torch.Tensor] = self() if self._is_hooked else self._buffers
        return arrays

    @property
    def _is_hooked(self) -> bool:
        return "forward" in self.__dict__ or bool(self._forward_pre_hooks)

    def matrix(self, arrays: Mapping[str, torch.Tensor]) -> _kernels.Matrix | None:
        """Return what `brought` gave as the kernels multiply with it; None if they cannot take it.

        Kept until the buffers are others: to check them anew takes a tenth of the time of a product of one token.
        """
        parts = arrays["packed"], arrays["scales"], arrays["zero_points"]
        if self._ready is not None and self._ready.is_of(parts):
            return self._ready.matrix
        if not kernels_take(*arrays.values()):
            return None
        matrix = GraphMatrix.of(self.form, arrays).made(self.form.layout.columns)
        if not self._is_hooked:  # what was brought for one call must not stay
            self._ready = _Ready(parts, tuple(part.data_ptr() for part in parts), matrix)
        return matrix

    def prepare(self, inputs: InputFormat, codes: tuple[int, int], bias: torch.Tensor | None) -> None:
        """Keep what a layer's next call multiplies with at once, if that is the matrix alone.

        Parameters
        ----------
        inputs : the layer's, for which this is made.
        codes : bits and span of the codes of inputs, (0, 0) = none; see `_kernels.multiply_codes`.
        bias : the layer's.

        """
        fixed = bias is None or (
            isinstance(bias, torch.nn.Parameter)  # else it is computed, and another one at the next call
            and bias.dtype in _READ_AS_THEY_LIE
            and bias.is_cpu
            and bias.is_contiguous()
        )
        if self._is_plain and self._ready is not None and fixed:
            parts, _, matrix = self._ready
            self.ready_product = _kernels.ready_product(_OF_TORCH, matrix, parts, bias, inputs, *codes)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to the buffers of this very object."""
        return {**self.__dict__, "_ready": None, "ready_product": None}

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the float weight in its shape, a new tensor of `dtype` (default: that of the layer)."""
        return _values(self.form, self()).reshape(self.form.shape).to(dtype or self.dtype)

    def rows(self, numbers: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return some rows of the matrix view, (n, columns), decoding no others; `numbers` are integers (n,)."""
        arrays = self()
        device = arrays["packed"].device
        if not len(numbers):
            return torch.empty(0, self.form.layout.columns, dtype=dtype or self.dtype, device=device)
        for part in ROW_PARTS & arrays.keys():
            arrays[part] = arrays[part].index_select(0, numbers.to(device))
        form = replace(self.form, shape=(len(numbers), self.form.layout.columns))
        return _values(form, arrays).to(dtype or self.dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:  # noqa: ARG002
        """Move the buffers; a cast changes what dtype the weight stands for, and nothing that is stored."""
        self._ready = self.ready_product = None
        for part, buffer in self.arrays().items():
            moved = fn(buffer)
            self._buffers[part] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(
                f"a quantized weight has no {name!r}: it holds codes; use dequantize() for the float weight"
            ) from error

    def forward(self, *inputs: object) -> dict[str, torch.Tensor]:
        """Return the buffers to compute with; a call, so that the hooks of offloading bring them first.

        As tensors of their own: what offloads groups of layers exchanges the memory of buffers right after the call.

        Raises
        ------
        ShapeMismatchError
            It is given inputs: it is no layer.

        """
        if inputs:
            raise ShapeMismatchError("a quantized weight is not a layer: call the layer that holds it")
        return {part: buffer.detach() for part, buffer in self.arrays().items()}

    def extra_repr(self) -> str:
        """One line: shape, width and grid."""
        form = self.form
        rotated = "" if form.rotation_seed is None else ", rotated"
        branch = f", rank {form.low_rank}" if form.low_rank else ""
        return f"{'x'.join(map(str, form.shape))}, INT{form.bit_width} {form.grid} g{form.group_size}{rotated}{branch}"


def kernels_take(*tensors: torch.Tensor) -> bool:
    """Tell whether our kernels can work on tensors: plain ones on the processor, and nobody looks at what is done.

    Those who look trace it, or count, replace or keep operators by a mode of torch, or carry derivatives forward.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _n_modes() or _forward_ad._current_level >= 0:  # noqa: SLF001
        return False
    return all(t.is_cpu and type(t) is torch.Tensor and _lies_there(t) for t in tensors)


def _lies_there(x: torch.Tensor) -> bool:
    """Whether a tensor's values are what is in its memory: those of `torch.func`, as in `vmap`, stand for others."""
    return not _is_wrapped(x) and not x.is_neg() and (x.data_ptr() != 0 or not x.numel())


def _over_the_same_memory(form: FolderLayer, arrays: dict[str, torch.Tensor]) -> QuantizedTensor:
    return form.tensor("weight", {part: buffer.numpy() for part, buffer in arrays.items()})


def _values(form: FolderLayer, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the float values of arrays of a form, float32 in the shape of the form or of its matrix view."""
    if kernels_take(*arrays.values()):
        threads = _kernels.resolve_threads(torch.get_num_threads())
        return torch.from_numpy(_over_the_same_memory(form, arrays).dequantize(n_threads=threads))
    values = decode(form, arrays)
    if form.rotation_seed is not None:
        values = unrotate(values, form.rotation_seed)
    if form.low_rank:
        values = values + arrays["low_rank_a"].float() @ arrays["low_rank_b"].float()
    return values if form.equalization is None else values / arrays["equalization"].float()
