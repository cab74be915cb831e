"""The settings of a run: one immutable type, its profiles, and where each value came from.

settings.py  DiffusionQuantConfig
fields.py    every field with title, unit, range and description
profiles.py  edge, local, cloud, base_mode
sources.py   YAML, environment, and the words for what is wrong with them
command.py   what differs from the profile, as values and as options of the command
complaints.py what is wrong with a value, where it stood, and what is allowed
given.py     what a caller gives, or the default
fitting_scales.py
             what a profile fills in for scales where its own format does not go with the rest
"""

from arrowquant_nb.config.given import given_or_default
from arrowquant_nb.config.profiles import DeploymentProfile, Modality, QuantMethod, Rotation, ScaleFormat
from arrowquant_nb.config.settings import DiffusionQuantConfig, available_fields, field_facts

__all__ = [
    "DeploymentProfile",
    "DiffusionQuantConfig",
    "Modality",
    "QuantMethod",
    "Rotation",
    "ScaleFormat",
    "available_fields",
    "field_facts",
    "given_or_default",
]
