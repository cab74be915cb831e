"""The one settings type: every choice a user can make, its unit, its range, and where its value came from.

A `DiffusionQuantConfig` is immutable and refuses bad values when built. Fields that are left out take the value of
the deployment profile. Only `DiffusionQuantConfig.load` reads the environment. Knows nothing of models, files of
weights or kernels: whether a layer name matches anything is for the layer policy to say.
"""

import json
import os
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import xxhash
from pydantic import PrivateAttr
from pydantic import ValidationError as PydanticError

from arrowquant_nb import tables
from arrowquant_nb.config.complaints import complaints
from arrowquant_nb.config.fields import ConfigFields, available_fields, field_facts
from arrowquant_nb.config.fitting_scales import fitting_scales
from arrowquant_nb.config.profiles import (
    K_GROUP_SIZES,
    K_METHODS,
    PROFILES,
    DeploymentProfile,
    Modality,
    QuantMethod,
    Rotation,
    ScaleFormat,
)
from arrowquant_nb.config.sources import ENVIRONMENT_PREFIX, did_you_mean, from_environment, read_yaml, shown, yaml_text
from arrowquant_nb.errors import ConfigurationError, OutputError

__all__ = [
    "DeploymentProfile",
    "DiffusionQuantConfig",
    "Modality",
    "QuantMethod",
    "Rotation",
    "ScaleFormat",
    "available_fields",
    "field_facts",
]

_ARGUMENT: Final = "argument"
_HEADER: Final = ("setting", "value", "unit", "from")


class DiffusionQuantConfig(ConfigFields):
    """Settings of one quantization run.

    The constructor takes fields by name and never reads the environment; `from_profile`, `from_yaml` and `load` are
    the other ways in. Equality and hash go by the values alone, not by where they came from.

    Raises
    ------
    ConfigurationError
        Names the source, the field, the value and what is allowed; for an unknown field the nearest valid one.

    Examples
    --------
    >>> config = DiffusionQuantConfig(deployment_profile="edge", min_accuracy=0.95)
    >>> config.bit_width, config.group_size, config.sources["bit_width"], config.sources["min_accuracy"]
    (2, 16, 'profile edge', 'argument')
    """

    _sources: Mapping[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, /, **values: Any) -> None:
        self._build(values, dict.fromkeys(values, _ARGUMENT))

    def _build(self, values: Mapping[str, object], sources: Mapping[str, str]) -> None:
        """Fill in the profile, check everything, and remember where each value came from."""
        for name in values:
            if name not in PROFILES["local"]:
                raise ConfigurationError(f'{sources[name]}: unknown setting "{name}".{did_you_mean(name, _FIELDS)}')
        chosen = values.get("deployment_profile", "local")
        profile = PROFILES.get(chosen) if isinstance(chosen, str) else None
        filled: dict[str, Any] = {**(profile or PROFILES["local"]), **values}
        if profile is not None:
            filled["deployment_profile"] = profile["deployment_profile"]
            filled |= fitting_scales(str(chosen), filled, values)
        origin = {"deployment_profile": "default"} | dict.fromkeys(_FIELDS[1:], f"profile {chosen}") | dict(sources)
        try:
            super().__init__(**filled)
        except PydanticError as error:
            raise ConfigurationError("; ".join(complaints(error, origin, _FACTS))) from None
        self._refuse_conflicts(origin)
        # Run records are passed on: they name the settings file, never the folder it lay in.
        self._sources = MappingProxyType({name: label.rpartition(os.sep)[2] for name, label in origin.items()})

    def _refuse_conflicts(self, origin: Mapping[str, str]) -> None:
        """Raise for settings that are fine one by one and do not go together."""
        sizes = K_GROUP_SIZES.get(self.bit_width, ())
        if self.scale_format != ScaleFormat.K:
            if self.group_size == 16:
                raise ConfigurationError(
                    f"{origin['group_size']}: group_size = 16 needs scale_format = k; with scale_format = float16 it "
                    "must be 32, 64, 128 or 256."
                )
        elif self.method not in K_METHODS:
            raise ConfigurationError(
                f"{origin['method']}: method = {_spelled(self.method)} has no scale_format k; use auto, uls or gptq."
            )
        elif self.group_size not in sizes:
            allowed = "; ".join(
                f"bit_width {bits} with group_size {' or '.join(map(str, sizes))}"
                for bits, sizes in K_GROUP_SIZES.items()
            )
            field = "group_size" if sizes else "bit_width"
            raise ConfigurationError(
                f"{origin[field]}: {field} = {getattr(self, field)} does not go with scale_format = k at bit_width "
                f"{self.bit_width}, group_size {self.group_size}; it has {allowed}."
            )

    def as_rows(self) -> list[list[str]]:
        """Return one row of texts per setting that can be changed: name, value, unit, where the value came from."""
        values = self.to_dict()
        return [
            [name, _words(values[name]), str(_FACTS[name]["unit"]), self.sources[name]] for name in available_fields()
        ]

    def __str__(self) -> str:
        return tables.text_table(_HEADER, self.as_rows())

    def _repr_html_(self) -> str:
        return tables.html_table(_HEADER, self.as_rows())

    @property
    def sources(self) -> Mapping[str, str]:
        """Field -> where its value came from: a profile, a file and line, an environment variable or an argument."""
        return self._sources

    @classmethod
    def from_profile(cls, name: str, **overrides: Any) -> Self:
        """Return the settings of a profile ("edge", "local", "cloud" or "base_mode") with some fields changed."""
        return cls(**{**overrides, "deployment_profile": name})

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Self:
        """Return the settings that a YAML file spells; the rest comes from the profile it names, else local."""
        return cls.load(yaml=path, env={})

    @classmethod
    def load(
        cls, yaml: str | os.PathLike[str] | None = None, env: Mapping[str, str] = os.environ, **explicit: Any
    ) -> Self:
        """Join all sources, lowest to highest: profile, YAML file, environment, explicit arguments.

        Parameters
        ----------
        yaml : path, optional
            A settings file.
        env : Mapping
            Variables named `ARROW_QUANT_` + field in capitals; lists and tables are spelled in JSON.
        **explicit
            Fields by name. The profile itself is looked up first, by the same order.
        """
        return cls.load_from(yaml, env, explicit)

    @classmethod
    def load_from(
        cls,
        yaml: str | os.PathLike[str] | None,
        env: Mapping[str, str],
        explicit: Mapping[str, object],
        spell: Callable[[str], str] = lambda _: _ARGUMENT,
    ) -> Self:
        """Do as `load` does; `spell(field)` says what the explicit source is called, such as "option --seed"."""
        layers: list[tuple[Mapping[str, object], Callable[[str], str]]] = []
        if yaml is not None:
            written, lines = read_yaml(Path(yaml))
            layers.append((written, lambda name: f"{os.fspath(yaml)}, line {lines[name]}"))
        kinds = {name: str(facts["kind"]) for name, facts in field_facts().items()}
        layers.append(
            (from_environment(env, kinds), lambda name: f"environment variable {ENVIRONMENT_PREFIX}{name.upper()}")
        )
        layers.append((explicit, spell))
        values: dict[str, object] = {}
        sources: dict[str, str] = {}
        for layer, label in layers:
            values.update(layer)
            sources.update({name: label(name) for name in layer})
        return cls._built(values, sources)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; what a profile had filled in is filled in again, by a new one too."""
        values = {name: getattr(self, name) for name in _FIELDS if self.sources[name] not in _FILLED_BY}
        profile = next((_FILLED_BY[source] for source in self.sources.values() if source in _FILLED_BY), None)
        if "deployment_profile" not in changes and profile is not None:  # base_mode reads "local" in the field
            values["deployment_profile"] = profile
        sources = {name: self.sources[name] for name in values} | dict.fromkeys(changes, _ARGUMENT)
        return self._built(values | changes, sources)

    def to_dict(self) -> dict[str, object]:
        """Return every field as JSON types; `from_dict` takes it back."""
        return {name: _plain(getattr(self, name)) for name in _FIELDS}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Return the settings that `to_dict` wrote down."""
        return cls.model_validate(values)

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the settings as YAML and write them to `path`, if given; `from_yaml` reads an equal config back."""
        text = yaml_text(self.to_dict())
        if path is not None:
            try:
                Path(path).write_text(text, encoding="utf-8")
            except (OSError, ValueError) as error:  # ValueError: the path holds a NUL
                why = getattr(error, "strerror", None) or error
                raise OutputError(f"{os.fspath(path)}: cannot write the settings: {why}") from error
        return text

    def content_hash(self) -> str:
        """Return 32 hex digits (XXH3, 128 bits) over the canonical JSON of all values."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return xxhash.xxh3_128_hexdigest(canonical.encode())

    @classmethod
    def model_validate(cls, obj: Any, **_: Any) -> Self:
        """Return `obj` if it is a configuration already, else build one from the mapping `obj`."""
        if isinstance(obj, cls):
            return obj
        if not isinstance(obj, Mapping) or not all(isinstance(name, str) for name in obj):
            raise ConfigurationError(f"settings must be a mapping of field names to values, not {shown(obj)}")
        return cls(**obj)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **_: Any) -> Self:
        """Build the settings from JSON text."""
        try:
            values = json.loads(json_data)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"settings are not JSON: {shown(str(error))}") from error
        return cls.model_validate(values)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002
        """Do as `replace` does: pydantic's own copy would take unchecked values."""
        return self.replace(**(update or {}))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiffusionQuantConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.content_hash())

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[dict[str, object], dict[str, str]]]:
        return self._built, (self.to_dict(), dict(self.sources))

    @classmethod
    def _built(cls, values: Mapping[str, object], sources: Mapping[str, str]) -> Self:
        config = cls.__new__(cls)
        cls._build(config, values, sources)
        return config


_FACTS: Final = field_facts()
_FIELDS: Final = tuple(_FACTS)
_FILLED_BY: Final = {f"profile {name}": name for name in PROFILES}


def _plain(value: object) -> object:
    """Return the JSON type of a field's value."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    return {name: _plain(entry) for name, entry in value.items()} if isinstance(value, Mapping) else value


def _spelled(value: object) -> str:
    return shown(_plain(value))


def _words(value: object) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
