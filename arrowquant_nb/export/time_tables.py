"""What belongs to a layer's inputs and stands in no format of weights: how they are rounded, and channel means."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["tables_not_held"]


def tables_not_held(model: QuantizedModel) -> tuple[str, ...]:
    """Return a sentence for each kind of thing that a format of weights alone leaves out."""
    tables = [] if model.time_aware is None else list(model.time_aware.by_layer)
    per_token = [name for name in model.rounded_inputs if name not in tables]
    means = [] if model.spatial is None else list(model.spatial.activation_means)
    found = []
    if tables:
        found.append(
            f"activation grids per timestep of {_layers(tables)} are not held: their inputs stay float, or are rounded "
            "as the reader does it"
        )
    if per_token:
        found.append(
            f"that the inputs of {_layers(per_token)} are rounded per token is not held: they stay float, or are "
            "rounded as the reader does it"
        )
    if means:
        found.append(
            f"channel means of the inputs of {_layers(means)} are not held: they matter only where inputs are rounded"
        )
    return tuple(found)


def _layers(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} layers (such as {names[0]})"
