"""What belongs to a layer's inputs and stands in no weight format: activation grids per timestep, channel means."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["tables_not_held"]


def tables_not_held(model: QuantizedModel) -> tuple[str, ...]:
    """Return a sentence for each kind of thing that a format of weights alone leaves out."""
    tables, means = [], []
    for name, tensor in model.items():
        metadata = {} if tensor.kept else model.layer_metadata(name)
        tables += [name] if metadata.get("time_aware") else []
        means += [name] if (metadata.get("spatial") or {}).get("activation_means") else []
    found = []
    if tables:
        found.append(
            f"activation grids per timestep of {len(tables)} layers (such as {tables[0]}) are not held: "
            "activations stay float there"
        )
    if means:
        found.append(
            f"channel means of the inputs of {len(means)} layers (such as {means[0]}) are not held: "
            "they matter only where activations are quantized"
        )
    return tuple(found)
