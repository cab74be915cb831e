"""The settings that a caller gives, or the default ones."""

from __future__ import annotations

from arrowquant_nb.config.settings import DiffusionQuantConfig
from arrowquant_nb.errors import ConfigurationError

__all__ = ["given_or_default"]


def given_or_default(config: DiffusionQuantConfig | None) -> DiffusionQuantConfig:
    """Return the settings, those of the local profile for None.

    Raises
    ------
    ConfigurationError
        It is something else, such as a dict.

    """
    if config is None:
        return DiffusionQuantConfig()
    if not isinstance(config, DiffusionQuantConfig):
        raise ConfigurationError(
            f"config must be a DiffusionQuantConfig, not {type(config).__name__}: "
            "make one with DiffusionQuantConfig.from_profile('edge') or DiffusionQuantConfig(bit_width=2)"
        )
    return config
