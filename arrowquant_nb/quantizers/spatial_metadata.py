"""What was done to the channels of a model's layers: the values, and their JSON form.

Knows nothing of how the numbers were found.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from arrowquant_nb.errors import MetadataError
from arrowquant_nb.json_form import JsonForm

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SpatialQuantMetadata"]


@dataclass(frozen=True)
class SpatialQuantMetadata(JsonForm):
    """What was done to the channels of a model's layers, as it is stored with the model."""

    enabled: bool
    """Whether spatial quantization ran."""
    channel_equalization: bool = False
    """Whether any layer has scales other than 1."""
    activation_smoothing: bool = False
    """Whether any layer's inputs are centred."""
    equalization_scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Layer -> divisor of each input channel, folded or stored; () where they stand in the column `equalization`."""
    activation_means: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    """Layer -> what is taken off each equalized channel, per time group, or once for all."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Layer -> exponent that the search chose; a layer where "off" won is not here."""
    folded: tuple[str, ...] = ()
    """Layers whose scales are in the weights of the layers before them; the others' are stored beside their codes."""

    def __post_init__(self) -> None:
        """Refuse flags that the numbers contradict."""
        if self.channel_equalization != bool(self.equalization_scales) or self.activation_smoothing != bool(
            self.activation_means
        ):
            raise MetadataError(
                f"channel_equalization {self.channel_equalization} goes with {len(self.equalization_scales)} layers' "
                f"scales, activation_smoothing {self.activation_smoothing} with {len(self.activation_means)} means"
            )
        unknown = sorted(set(self.folded) - set(self.equalization_scales))
        if unknown or (not self.enabled and (self.channel_equalization or self.activation_smoothing)):
            raise MetadataError(f"folded layers {unknown} have no scales, or spatial quantization is off")

    def of_layer(self, layer: str) -> SpatialQuantMetadata:
        """Return the part that belongs into the data file of one layer."""

        def only(values: Mapping[str, Any]) -> dict[str, Any]:
            return {layer: values[layer]} if layer in values else {}

        return replace(
            self,
            channel_equalization=layer in self.equalization_scales,
            activation_smoothing=layer in self.activation_means,
            equalization_scales=only(self.equalization_scales),
            activation_means=only(self.activation_means),
            alphas=only(self.alphas),
            folded=tuple(name for name in self.folded if name == layer),
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild the value from `to_dict`."""
        scales = {name: tuple(values) for name, values in data["equalization_scales"].items()}
        means = {name: tuple(map(tuple, groups)) for name, groups in data["activation_means"].items()}
        return super().from_dict({**data, "equalization_scales": scales, "activation_means": means})
