"""Inputs on the grids that their layer declares, in torch operations: values come back float.

The same grids as `arrowquant_nb.quantizers.activation_grid`; the integer kernels multiply by their codes. A gradient
passes through rounding as if it were not there, and not through what a stored grid cuts off: the slope of a step is
zero, which would leave the layers before without any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from arrowquant_nb.errors import ShapeMismatchError, ValidationError
from arrowquant_nb.quantizers.activation_grid import LEAST_SCALE
from arrowquant_nb.runtime.input_format import GROUP_SIZE
from arrowquant_nb.runtime.time import current_time

if TYPE_CHECKING:
    from arrowquant_nb.quantizers.time_tables import LayerTimeTable
    from arrowquant_nb.runtime.input_format import InputFormat

__all__ = ["input_means", "round_inputs", "static_grids"]


def round_inputs(inputs: InputFormat, x: torch.Tensor, name: str) -> torch.Tensor:
    """Return float x (batch, ..., columns) rounded by the layer's rule; `name` is for messages."""
    if inputs.is_float:
        return x
    n = 2**inputs.bit_width - 1
    if inputs.table is not None:
        scale, zero = (grid.to(x.device, x.dtype) for grid in static_grids(inputs.table, x, name))
        rounded = torch.clamp(torch.round(x / scale), -zero, n - zero) * scale
        inside = torch.clamp(x, -zero * scale, (n - zero) * scale) if _is_recorded(x) else x
        return _with_gradient_of(inside, rounded)
    if inputs.rule == "per_token" or x.shape[-1] <= GROUP_SIZE:
        return _round_rows(x, n)
    n_whole = x.shape[-1] // GROUP_SIZE * GROUP_SIZE
    whole = _round_rows(x[..., :n_whole].reshape(*x.shape[:-1], -1, GROUP_SIZE), n)
    parts = [whole.reshape(*x.shape[:-1], n_whole)]
    if n_whole < x.shape[-1]:
        parts.append(_round_rows(x[..., n_whole:], n))
    return torch.cat(parts, -1)


def _round_rows(x: torch.Tensor, n: int) -> torch.Tensor:
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / n).clamp(min=float(LEAST_SCALE))
    zero = torch.clamp(torch.round(-low / scale), 0, n)
    return _with_gradient_of(x, torch.clamp(torch.round(x / scale), min=-zero, max=n - zero) * scale)


def _with_gradient_of(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """Return `rounded`, to the bit, whose gradient is that of x."""
    return rounded.detach() + (x - x.detach()) if _is_recorded(x) else rounded


def _is_recorded(x: torch.Tensor) -> bool:
    return bool(x.requires_grad and torch.is_grad_enabled())


def static_grids(table: LayerTimeTable, x: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and zero point for x at the time of the model call, float32: one each, or one per row of the batch.

    Raises
    ------
    ValidationError
        The layer has several groups of timesteps and nothing said which timestep it is.
    ShapeMismatchError
        Times of another number of samples.

    """
    groups = _groups(table, x, name)
    if isinstance(groups, torch.Tensor):
        scales, zeros = (
            torch.tensor(values, dtype=torch.float32).to(groups.device)[groups]
            for values in ([g.scale for g in table.groups], [g.zero_point for g in table.groups])
        )
    else:
        scales = torch.tensor([table.groups[g].scale for g in groups], dtype=torch.float32)
        zeros = torch.tensor([table.groups[g].zero_point for g in groups], dtype=torch.float32)
    if _n(groups) == 1:
        return scales[0], zeros[0]
    return _per_sample(scales[:, None], x), _per_sample(zeros[:, None], x)


def _per_sample(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Spread (samples, n) over the batch of x: (batch, 1, ..., n). Samples may come as several windows or frames."""
    n = x.shape[0]  # of a graph it may be a symbol, which len() would fix
    return values.repeat_interleave(n // values.shape[0], 0).view(n, *[1] * (x.ndim - 2), values.shape[-1])


def input_means(inputs: InputFormat, means: torch.Tensor, x: torch.Tensor, name: str) -> torch.Tensor:
    """Return what is taken off the channels of x at the time of the model call, (1, ..., columns) or one per sample.

    Parameters
    ----------
    inputs : how they are rounded.
    means : of the layer, float32 (time groups or 1, columns).
    x : (batch, ..., columns).
    name : of the layer, for messages.

    Raises
    ------
    ShapeMismatchError
        Means of another number of time groups than the layer's table.

    """
    means, table = means.to(x.dtype), inputs.table
    if len(means) == 1:  # the same at all times
        return means[0].view(*[1] * (x.ndim - 1), -1)
    if table is None or len(means) != len(table.groups):
        raise ShapeMismatchError(
            f"{name}: means of {len(means)} time groups do not fit inputs {inputs.rule!r}: quantize again"
        )
    groups = _groups(table, x, name)
    if _n(groups) == 1:
        return means[groups[0]].view(*[1] * (x.ndim - 1), -1)
    return _per_sample(means[groups if isinstance(groups, torch.Tensor) else list(groups)], x)


def _n(groups: tuple[int, ...] | torch.Tensor) -> int:
    return groups.shape[0] if isinstance(groups, torch.Tensor) else len(groups)


def _groups(table: LayerTimeTable, x: torch.Tensor, name: str) -> tuple[int, ...] | torch.Tensor:
    """Return the time group of all samples, or of each; a tensor of the graph, where one is recorded."""
    if len(table.groups) == 1:
        return (0,)
    moment = current_time()
    if moment is None:
        raise ValidationError(
            f"{name}: its inputs have grids for {len(table.groups)} groups of timesteps and the timestep is not known: "
            "call the model that load_quantized returned, wrap it with follow_time(model), or call it inside "
            "`with time_context(t):`"
        )
    groups = moment.groups_in(table)
    if not isinstance(groups, torch.Tensor) and len(set(groups)) == 1:
        return groups[:1]
    if _n(groups) > 1 and (not x.ndim or x.shape[0] % _n(groups)):
        raise ShapeMismatchError(
            f"{name}: {_n(groups)} samples at different timesteps, but a batch of {tuple(x.shape)}: give every sample "
            "the same timestep, or call the model sample by sample"
        )
    return groups
