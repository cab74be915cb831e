"""Layers of a torch model: what the checkpoint calls their weights, and their inputs as the rows of a product.

Linear layers and convolutions of one to three dimensions. torch is loaded on first use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arrowquant_nb.calibration.channel_groups import group_names
from arrowquant_nb.calibration.statistics import model_hash
from arrowquant_nb.errors import ConfigurationError, MetadataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

WRAPPER: Final = "_orig_mod."
"""What torch.compile puts before the name of every tensor."""


def torch_module() -> Any:
    """Return torch.

    Raises
    ------
    ConfigurationError
        It is not installed.

    """
    try:
        import torch  # noqa: PLC0415 - optional, and loads slowly
    except ImportError as error:
        raise ConfigurationError("this needs torch: pip install 'arrowquant_nb[torch]'") from error
    return torch


@dataclass(frozen=True, eq=False)
class TorchLayer:
    """One layer."""

    name: str
    """The weight's name in the checkpoint."""
    module: Any
    """A `Linear` or `Conv1d/2d/3d`."""

    @property
    def groups(self) -> int:
        """Channel groups of a convolution, each with inputs and outputs of its own; 1 elsewhere."""
        return int(getattr(self.module, "groups", 1))

    @property
    def columns(self) -> int:
        """Columns of the weight's matrix view."""
        return int(np.prod(self.module.weight.shape[1:]))

    def rows(self, x: Any) -> NDArray[np.float32]:
        """Return an input as float32 (n, columns), sample after sample; a convolution's as its unfolded patches.

        The channel groups of a grouped convolution are rows after each other, see `by_group`.

        Raises
        ------
        MetadataError
            The input holds NaN or infinity.

        """
        x = x.detach()
        if x.dtype != torch_module().float32:
            x = x.float()
        if x.dim() > 1 and hasattr(self.module, "kernel_size"):
            x = _patches(self.module, x)
        rows = np.ascontiguousarray(x.reshape(-1, self.columns).cpu().numpy())
        if not np.isfinite(rows.sum(dtype=np.float64)) and not np.isfinite(rows).all():
            raise MetadataError(
                f"calibration of {self.name!r}: its input holds NaN or infinity; run the model in float32 or bfloat16"
            )
        return rows

    def by_group(self, rows: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield what `rows` returned under the names that calibration files them by, each channel group for itself."""
        names = group_names(self.name, self.groups)
        if len(names) == 1:
            yield self.name, rows
            return
        grouped = rows.reshape(-1, len(names), rows.shape[1])
        for k, name in enumerate(names):
            yield name, np.ascontiguousarray(grouped[:, k])


def torch_layers(model: Any) -> dict[str, tuple[TorchLayer, ...]]:
    """Return the layers of a model by checkpoint name; several where layers share a weight.

    A weight that several modules share has the first of their names, under which transformers and diffusers store it.
    """
    nn = torch_module().nn
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name.replace(WRAPPER, ""))
    found: dict[str, list[TorchLayer]] = {}
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and id(module.weight) in names:
            name = names[id(module.weight)]
            found.setdefault(name, []).append(TorchLayer(name, module))
    return {name: tuple(layers) for name, layers in found.items()}


def checkpoint_tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parameters and stored buffers of a model by checkpoint name, shared ones once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and hasattr(tensor, "shape"):
            seen.add(id(tensor))
            yield name.replace(WRAPPER, ""), tensor


def torch_model_hash(model: Any) -> str:
    """Return `model_hash` of a torch model, tensor by tensor: that of its NumPy arrays."""
    return model_hash(_Arrays(dict(checkpoint_tensors(model))))


class _Arrays(dict[str, Any]):
    """Tensors that turn into arrays when they are looked at."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor = super().__getitem__(name).detach()
        if tensor.is_meta:
            raise MetadataError(f"calibration: {name!r} has no values (device meta); load the model's weights first")
        tensor = tensor.cpu()
        if str(tensor.dtype) in ("torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e5m2"):
            import ml_dtypes  # noqa: PLC0415 - seldom needed

            raw = tensor.contiguous().view(torch_module().uint8).numpy()
            dtype = getattr(ml_dtypes, str(tensor.dtype).removeprefix("torch."))
            return np.asarray(raw.view(dtype).reshape(tensor.shape))
        return np.asarray(tensor.numpy())


def _patches(conv: Any, x: Any) -> Any:
    """Return the inputs of a convolution as (samples, positions, groups, columns of the weight's matrix view)."""
    n_axes = len(conv.kernel_size)
    if x.dim() == n_axes + 1:
        x = x[None]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    margins = _margins(conv)
    if any(margins):
        x = torch_module().nn.functional.pad(x, margins, mode=mode)
    for axis in range(n_axes):
        dilation, stride = conv.dilation[axis], conv.stride[axis]
        x = x.unfold(2 + axis, dilation * (conv.kernel_size[axis] - 1) + 1, stride)[..., ::dilation]
    places, kernel = range(2, 2 + n_axes), range(2 + n_axes, 2 + 2 * n_axes)
    x = x.permute(0, *places, 1, *kernel)
    return x.reshape(len(x), -1, conv.groups, x.shape[1 + n_axes] // conv.groups, *conv.kernel_size)


def _margins(conv: Any) -> list[int]:
    """Return the padding of a convolution, the last axis first, as `torch.nn.functional.pad` takes it."""
    margins: list[int] = []
    for axis in reversed(range(len(conv.kernel_size))):
        if conv.padding == "valid":
            margins += [0, 0]
        elif conv.padding == "same":
            total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            margins += [total // 2, total - total // 2]
        else:
            margins += [conv.padding[axis]] * 2
    return margins
