"""The fields of a configuration: type, default, title, description, unit and range of each, one after the other.

Declarations only. How values from several sources are joined, checked and worded is in `settings.py` and `sources.py`;
what the words and profiles are is in `profiles.py`.
"""

import operator
import re
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr

from arrowquant_nb.config.profiles import (
    PROFILES,
    DeploymentProfile,
    Modality,
    QuantMethod,
    Rotation,
    ScaleFormat,
)

__all__ = ["ConfigFields", "available_fields", "field_facts"]


def _integer(value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError("not an integer")
    try:
        return operator.index(value)
    except TypeError as error:  # an array of several numbers
        raise ValueError("not an integer") from error


def _number(value: object) -> float:
    # numpy floats carry __float__, and so does numpy.bool; text does not.
    if isinstance(value, bool | str | bytes) or type(value).__name__ == "bool" or not hasattr(value, "__float__"):
        raise ValueError("not a number")
    try:
        return float(value)
    except (TypeError, OverflowError) as error:  # an array of several numbers; an integer beyond float64
        raise ValueError("not a number") from error


def _flag(value: object) -> object:
    return bool(value) if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_") else value


def _list(value: object) -> object:
    if isinstance(value, list | tuple):
        return value
    raise ValueError("not a list")


def _layer_bits(value: int) -> int:
    if value not in (2, 4, 8, 16):
        raise ValueError("not a width")
    return value


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


IntegerField = Annotated[int, BeforeValidator(_integer)]
BitWidthField = Annotated[Literal[2, 4, 8], BeforeValidator(_integer)]
GroupSizeField = Annotated[Literal[16, 32, 64, 128, 256], BeforeValidator(_integer)]
ActivationBitsField = Annotated[Literal[4, 8], BeforeValidator(_integer)]
NumberField = Annotated[float, BeforeValidator(_number)]
FlagField = Annotated[StrictBool, BeforeValidator(_flag)]
NameField = Annotated[StrictStr, Field(min_length=1)]
NamesField = Annotated[tuple[NameField, ...], BeforeValidator(_list)]
PatternsField = Annotated[tuple[Annotated[NameField, AfterValidator(_regex)], ...], BeforeValidator(_list)]
LayerBitsField = Annotated[int, BeforeValidator(_integer), AfterValidator(_layer_bits)]
WidthsField = Annotated[Mapping[NameField, LayerBitsField], AfterValidator(MappingProxyType)]
MethodsField = Annotated[Mapping[NameField, QuantMethod], AfterValidator(MappingProxyType)]


def _setting(
    name: str,
    title: str,
    description: str,
    *,
    kind: str,
    valid: str,
    unit: str = "",
    group: str = "advanced",
    **limits: Any,
) -> Any:
    """Return the pydantic field: default of profile local, and the facts that forms, help and messages print."""
    facts: dict[str, Any] = {"kind": kind, "unit": unit, "range": valid, "group": group}
    return Field(PROFILES["local"][name], title=title, description=description, json_schema_extra=facts, **limits)


class ConfigFields(BaseModel):
    """What `DiffusionQuantConfig` consists of; not used by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    deployment_profile: DeploymentProfile = _setting(
        "deployment_profile", "Profile", "Named defaults: edge is smallest, local balanced, cloud closest.",
        kind="word", valid="edge, local or cloud; base_mode fills in plain round-to-nearest", group="basic",
    )  # fmt: skip
    bit_width: BitWidthField = _setting(
        "bit_width", "Bits", "Width of the codes of a quantized weight.",
        kind="integer", valid="2, 4 or 8", unit="bits", group="basic",
    )  # fmt: skip
    group_size: GroupSizeField = _setting(
        "group_size", "Group size", "Weights along the input axis that share one scale.",
        kind="integer", valid="32, 64, 128 or 256; 16 too with scale_format k", unit="weights", group="basic",
    )  # fmt: skip
    method: QuantMethod = _setting(
        "method", "Method", "How codes are chosen: rtn rounds, mse clips, uls fits scale and minimum by least squares, "
        "hqq fits the minimum to small errors, r2q fits two sign planes (2 bits only), gptq compensates uls; auto "
        "takes what suits the model.", kind="word", valid="auto, rtn, mse, uls, hqq, r2q or gptq",
    )  # fmt: skip
    min_accuracy: NumberField = _setting(
        "min_accuracy", "Quality floor (cosine)", "A layer whose cosine similarity to the original is lower falls back "
        "to more bits.",
        kind="number", valid="between 0 and 1", unit="cosine similarity", group="basic", ge=0.0, le=1.0,
    )  # fmt: skip
    gain_correction: FlagField = _setting(
        "gain_correction", "Gain correction", "Rescale each row so that quantizing neither shrinks nor stretches it "
        "(mse, uls and r2q).", kind="flag", valid="true or false",
    )  # fmt: skip
    fail_fast: FlagField = _setting(
        "fail_fast", "Stop at first failure", "Stop at the first layer that misses its gate instead of falling back to "
        "more bits.", kind="flag", valid="true or false",
    )  # fmt: skip
    skip_sensitive_layers: FlagField = _setting(
        "skip_sensitive_layers", "Keep sensitive layers", "Leave layers that are named sensitive in float instead of "
        "at INT8, and those too that measure as outliers (above median + 3 MAD).",
        kind="flag", valid="true or false",
    )  # fmt: skip
    sensitive_layer_names: NamesField = _setting(
        "sensitive_layer_names", "Sensitive layers", "Full names of layers that get INT8, or stay in float.",
        kind="words", valid="a list of layer names",
    )  # fmt: skip
    sensitive_layer_patterns: PatternsField = _setting(
        "sensitive_layer_patterns", "Sensitive layer patterns", "Regular expressions searched for in layer names.",
        kind="words", valid="a list of regular expressions",
    )  # fmt: skip
    layer_bit_widths: WidthsField = _setting(
        "layer_bit_widths", "Bits per layer", "Layer name or glob to width; 16 keeps the layer in float. Goes before "
        "every other rule.", kind="table", valid="layer names or globs, each with 2, 4, 8 or 16", unit="bits",
    )  # fmt: skip
    layer_methods: MethodsField = _setting(
        "layer_methods", "Method per layer", "Layer name or glob to method, in place of the run's method; its width "
        "stays what the other rules say. r2q exists at 2 bits only.", kind="table",
        valid="layer names or globs, each with auto, rtn, mse, uls, hqq, r2q or gptq",
    )  # fmt: skip
    modality: Modality | None = _setting(
        "modality", "Modality", "What the model makes; none lets its files tell.",
        kind="word", valid="text, code, image, audio or none",
    )  # fmt: skip
    enable_time_aware: FlagField = _setting(
        "enable_time_aware", "Time-aware", "Judge a layer by its worst group of timesteps too, where calibration "
        "measures it; with quantized activations, a grid for each group of timesteps.",
        kind="flag", valid="true or false",
    )  # fmt: skip
    enable_spatial: FlagField = _setting(
        "enable_spatial", "Spatial", "Even out the channels of image and audio models where that lowers the error of a "
        "layer's output (needs calibration); with quantized activations, where it gains most, also take their means "
        "off. With float inputs GPTQ leaves it little to gain.",
        kind="flag", valid="true or false",
    )  # fmt: skip
    fold_equalization: FlagField = _setting(
        "fold_equalization", "Fold equalization", "Put the divisors of evened-out channels into the weights before a "
        "layer where the architecture allows (DiT), so that nothing divides when the model runs; false stores all of "
        "them beside the codes and leaves every kept tensor bit-exact.", kind="flag", valid="true or false",
    )  # fmt: skip
    num_time_groups: IntegerField = _setting(
        "num_time_groups", "Time groups", "Most groups that the timesteps are divided into.",
        kind="integer", valid="1 to 100", unit="groups", group="basic", ge=1, le=100,
    )  # fmt: skip
    calibration_samples: IntegerField = _setting(
        "calibration_samples", "Calibration samples", "Samples whose trajectories show what the layers are given.",
        kind="integer", valid="1 to 4096", unit="samples", group="basic", ge=1, le=4096,
    )  # fmt: skip
    activation_bit_width: ActivationBitsField | None = _setting(
        "activation_bit_width", "Activation bits", "Width of the inputs of quantized layers when the model runs, on "
        "grids found by calibration (without it, a scale per token); none leaves them in float.",
        kind="integer", valid="4, 8 or none", unit="bits",
    )  # fmt: skip
    min_output_sqnr_db: NumberField | None = _setting(
        "min_output_sqnr_db", "Output quality floor", "Least SQNR of a layer's output; none uses the gate table.",
        kind="number", valid="a number or none", unit="dB", allow_inf_nan=False,
    )  # fmt: skip
    min_network_sqnr_db: NumberField | None = _setting(
        "min_network_sqnr_db", "Network quality floor", "Least SQNR of the network's output where the model can be "
        "run: up to three layers get more bits until it is reached. None reports it only.",
        kind="number", valid="a number or none", unit="dB", allow_inf_nan=False,
    )  # fmt: skip
    scale_format: ScaleFormat = _setting(
        "scale_format", "Scale format", "How scales are stored: one float16 per group, or small integers under a "
        "float16 per 256 weights (INT2 with group size 16 or 32, INT4 with 32 or 64). Where a profile's format does "
        "not go with other settings, float16 is taken.",
        kind="word", valid="float16 or k",
    )  # fmt: skip
    rotation: Rotation = _setting(
        "rotation", "Rotation", "Hadamard mixing of the input axis before quantization, undone at dequantize; auto "
        "rotates a layer where that lowers its weight error.",
        kind="word", valid="none, hadamard or auto",
    )  # fmt: skip
    low_rank: IntegerField = _setting(
        "low_rank", "Low-rank correction", "Rank of a float16 product stored beside the codes of a layer, where that "
        "lowers its error.",
        kind="integer", valid="0 to 128", unit="rank", ge=0, le=128,
    )  # fmt: skip
    target_model_size_mb: NumberField | None = _setting(
        "target_model_size_mb", "Size limit", "Payload of all tensors (container and texts come on top): bits and "
        "group size of each layer are chosen to fit it with the least error.",
        kind="number", valid="above 0, or none", unit="MB (10^6 bytes)", group="basic", gt=0.0, allow_inf_nan=False,
    )  # fmt: skip
    num_threads: IntegerField = _setting(
        "num_threads", "Threads", "0 uses all cores this process may use. Never changes a result.",
        kind="integer", valid="0 to 1024", unit="threads", ge=0, le=1024,
    )  # fmt: skip
    seed: IntegerField = _setting(
        "seed", "Seed", "Signs of a rotation; starting noise of sample pictures and of their evaluation.",
        kind="integer", valid="0 to 2^63 - 1", ge=0, le=2**63 - 1,
    )  # fmt: skip


def field_facts() -> dict[str, dict[str, object]]:
    """Return for every field its title, description, kind, unit, range and group.

    `choices` are the values of a field that has few, in order, None among them where it may be left open; `least` and
    `most` are the ends of a number's range. Each is None where there is no such thing.
    """
    return {name: dict(facts) for name, facts in _FACTS.items()}


def available_fields() -> tuple[str, ...]:
    """Return the fields that a form or command line offers."""
    return tuple(_FACTS)


def _facts_of(name: str) -> dict[str, object]:
    field = ConfigFields.model_fields[name]
    extra = field.json_schema_extra
    facts = dict(extra) if isinstance(extra, dict) else {}
    limits: dict[str, object] = {"least": None, "most": None}
    for limit in field.metadata:
        limits["least"] = getattr(limit, "ge", limits["least"])
        limits["most"] = getattr(limit, "le", limits["most"])
    return {
        "title": field.title,
        "description": field.description,
        **facts,
        **limits,
        "choices": _choices(field.annotation),
        "optional": type(None) in get_args(field.annotation),
    }


def _choices(annotation: object) -> tuple[object, ...] | None:
    """Return the values of an enumeration or of literals, None for a type without such."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(member.value for member in annotation)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) in (Union, UnionType) and len(parts) == 1:
        inner = parts[0]
        found = _choices(get_args(inner)[0] if get_origin(inner) is Annotated else inner)
        return None if found is None else (None, *found)
    return None


_FACTS: Final = {name: _facts_of(name) for name in ConfigFields.model_fields}
