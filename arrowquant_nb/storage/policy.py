"""Which tensors are quantized, at how many bits, by which method where the user orders one, and why.

Role of a weight by model class and name (`policy_table`), then the user's rules on top:
`layer_bit_widths` > sensitive names and patterns > class policy > `bit_width`; `layer_methods` changes no width. Reads
no weights and knows no kernel. A rule of the user that matches nothing is an error, never a silent no-op.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from arrowquant_nb.errors import CheckpointError, ConfigurationError
from arrowquant_nb.quantizers.layout import KEPT_BIT_WIDTH
from arrowquant_nb.storage.policy_table import FAMILIES, OTHER_PARTS, ROLES, WRAPPERS, Rule, family_of
from arrowquant_nb.storage.safetensors_file import QUANTIZABLE_DTYPES, TensorEntry, quoted

if TYPE_CHECKING:
    from arrowquant_nb.config import DiffusionQuantConfig

_Order = TypeVar("_Order", bound=int | str)

LEAST_ELEMENTS = 16_384
LEAST_COLUMNS = 32  # the smallest group
_WEIGHT = re.compile(r"(?:.+\.)?(?:weight|in_proj_weight|[qkv]_proj_weight|embedding)", re.DOTALL)
_EXPERTS = re.compile(r"(?:.+\.)?experts\.(?:gate_up_proj|gate_proj|up_proj|down_proj|w[123])", re.DOTALL)
_SPELLED_OUT = 2_000  # names compared when a hint is made, and their longest length
_LONGEST = 256


@dataclass(frozen=True, slots=True)
class Assignment:
    """What happens to one tensor."""

    name: str
    bit_width: int
    """2, 4 or 8; 16 means carried over as it is."""
    role: str
    """What kind of tensor it is, such as `linear` or `norm or bias`."""
    reason: str
    """One plain sentence."""
    rule: str
    """What decided: `layer_bit_widths`, `sensitive`, `class policy`, `bit_width` or `not a weight`."""
    method: str = ""
    """What `layer_methods` orders; "" for the run's method."""


def assign_bit_widths(
    entries: Iterable[TensorEntry], class_name: str | None, modality: str, config: "DiffusionQuantConfig"
) -> list[Assignment]:
    """Decide for every tensor, in order.

    Parameters
    ----------
    entries : iterable of TensorEntry
        All tensors of the checkpoint.
    class_name : str or None
        Class of the model; None for single files.
    modality : str
        text, code, image or audio; text and code use the language-model rules when the class is not known.
    config : DiffusionQuantConfig
        `bit_width`, `layer_bit_widths`, `layer_methods` and the sensitive-layer fields are used.

    Raises
    ------
    ConfigurationError
        A name, glob or pattern that matches nothing, a bad pattern, or an order to quantize what is no weight.
    CheckpointError
        A weight to be quantized is stored in a dtype that cannot be read as float.
    """
    tensors = list(entries)
    family = _family(class_name, modality)
    rules = FAMILIES[family]
    roles = {entry.name: _role(entry, rules, single_file=class_name is None) for entry in tensors}
    ordered = _ordered(tensors, config.layer_bit_widths, "layer_bit_widths", "remove the line or set it to 16")
    methods = _ordered(tensors, config.layer_methods, "layer_methods", "remove the line")
    sensitive = _sensitive(tensors, config.sensitive_layer_names, config.sensitive_layer_patterns)
    keep_sensitive = config.skip_sensitive_layers
    found = []
    for entry in tensors:
        assignment = _by_policy(entry, roles[entry.name], config.bit_width, family)
        if entry.name in sensitive and _is_weight(entry):
            assignment = _by_sensitivity(assignment, sensitive[entry.name], keep=keep_sensitive)
        if entry.name in ordered:
            assignment = _by_order(assignment, *ordered[entry.name])
        if entry.name in methods:
            assignment = _by_method(assignment, *methods[entry.name])
        if assignment.bit_width != KEPT_BIT_WIDTH and entry.dtype not in QUANTIZABLE_DTYPES:
            raise CheckpointError(
                f"{entry.file}: the weight {quoted(entry.name)} is stored as {entry.dtype}; save it as float32, "
                f"float16 or bfloat16, or keep it with layer_bit_widths: {{{entry.name[:120]!r}: 16}}"
            )
        found.append(assignment)
    return found


def steers_all_channels(name: str, class_name: str | None, modality: str) -> bool:
    """Tell whether a weight sees timestep and class alone (embedders, modulation), so that its inputs stay float."""
    return _special(name, FAMILIES[_family(class_name, modality)]) in ("embedder", "modulation")


def _family(class_name: str | None, modality: str) -> str:
    family = family_of(class_name)
    if family == "any model" and class_name is not None and modality in ("text", "code"):
        return "language model"
    return family


def _is_weight(entry: TensorEntry) -> bool:
    named = _WEIGHT.fullmatch(entry.name) or (len(entry.shape) == 3 and _EXPERTS.fullmatch(entry.name))
    return bool(named) and len(entry.shape) > 1 and entry.n_elements > 0


def _role(entry: TensorEntry, rules: tuple[Rule, ...], *, single_file: bool) -> str:
    if len(entry.shape) < 2:
        return "norm or bias"
    if not _is_weight(entry):
        return "not a weight"
    role = "other part" if single_file and OTHER_PARTS.fullmatch(entry.name) else _special(entry.name, rules)
    if role is None or ROLES[role].least_bit_width != KEPT_BIT_WIDTH:
        if entry.n_elements < LEAST_ELEMENTS:
            return "small"
        if entry.columns < LEAST_COLUMNS:
            return "short rows"
    plain = "convolution" if len(entry.shape) > 2 and not _EXPERTS.fullmatch(entry.name) else "linear"
    return role or plain


def _special(name: str, rules: tuple[Rule, ...]) -> str | None:
    bare = WRAPPERS.sub("", name)
    return next((rule.role for rule in rules if rule.pattern.fullmatch(bare)), None)


def _by_policy(entry: TensorEntry, role: str, target: int, family: str) -> Assignment:
    least = ROLES[role].least_bit_width
    if role in ("norm or bias", "not a weight"):
        return Assignment(entry.name, KEPT_BIT_WIDTH, role, ROLES[role].reason, "not a weight")
    if least <= target:
        reason = f"{role.capitalize()} layer: the requested {target} bits."
        if least:
            reason = f"The requested {target} bits are enough for a {role} layer."
        return Assignment(entry.name, target, role, reason, "bit_width")
    where = "" if least == KEPT_BIT_WIDTH and role in ("small", "short rows") else f" (rule for {family})"
    return Assignment(entry.name, least, role, ROLES[role].reason.removesuffix(".") + where + ".", "class policy")


def _by_sensitivity(policy: Assignment, cause: str, *, keep: bool) -> Assignment:
    bit_width = KEPT_BIT_WIDTH if keep or policy.bit_width == KEPT_BIT_WIDTH else 8
    action = "is carried over" if bit_width == KEPT_BIT_WIDTH else "stays at 8 bits"
    return Assignment(policy.name, bit_width, policy.role, f"Named sensitive by {cause}, so it {action}.", "sensitive")


def _by_order(policy: Assignment, bit_width: int, cause: str) -> Assignment:
    action = "carried over" if bit_width == KEPT_BIT_WIDTH else f"quantized to {bit_width} bits"
    return Assignment(policy.name, bit_width, policy.role, f"Ordered by {cause} to be {action}.", "layer_bit_widths")


def _by_method(policy: Assignment, method: str, cause: str) -> Assignment:
    """Give a layer the method that is ordered; a kept one has none, and says so."""
    if policy.bit_width == KEPT_BIT_WIDTH:
        return replace(policy, reason=f"{policy.reason} The method that {cause} orders is not needed.")
    reason = f"{policy.reason} Method {method} ordered by {cause}."
    return replace(policy, reason=reason, method=str(method))


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _ordered(
    tensors: list[TensorEntry], orders: Mapping[str, _Order], setting: str, remedy: str
) -> dict[str, tuple[_Order, str]]:
    """Resolve a setting per layer: exact names win over globs, among globs the last that matches wins.

    Only an order to keep may name what is no weight.
    """
    by_name = {entry.name: entry for entry in tensors}
    found: dict[str, tuple[_Order, str]] = {}
    exact: dict[str, tuple[_Order, str]] = {}
    for order, value in orders.items():
        cause = f"{setting} {quoted(order)}"
        keeps = value == KEPT_BIT_WIDTH
        named = by_name.get(order) or by_name.get(f"{order}.weight")
        if named is not None:
            if not keeps and not _is_weight(named):
                raise ConfigurationError(
                    f"{cause}: {quoted(named.name)} of shape {named.shape} is not the weight of a linear or "
                    f"convolution layer and cannot be quantized; {remedy}"
                )
            exact[named.name] = (value, cause)
            continue
        matched = [e for e in tensors if fnmatchcase(e.name, order) or fnmatchcase(_layer(e.name), order)]
        if not matched:
            raise _unmatched(cause, order, tensors)
        weights = [entry for entry in matched if _is_weight(entry)]
        if not weights and not keeps:
            raise ConfigurationError(
                f"{cause}: matches {len(matched)} tensors and none is a weight, such as {quoted(matched[0].name)}; "
                f"{remedy}"
            )
        found.update({entry.name: (value, cause) for entry in weights})
    return {**found, **exact}


def _sensitive(tensors: list[TensorEntry], names: Iterable[str], patterns: Iterable[str]) -> dict[str, str]:
    """Resolve the sensitive layers: whole names, or regular expressions searched for anywhere in a name."""
    found: dict[str, str] = {}
    weights = [entry.name for entry in tensors if _is_weight(entry)]
    for name in names:
        cause = f"sensitive_layer_names {quoted(name)}"
        matched = [weight for weight in weights if name in (weight, _layer(weight))]
        if not matched:
            raise _unmatched(cause, name, tensors)
        found.update(dict.fromkeys(matched, cause))
    for pattern in patterns:
        cause = f"sensitive_layer_patterns {quoted(pattern)}"
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ConfigurationError(
                f"{cause}: not a regular expression ({error}); escape special characters"
            ) from error
        matched = [weight for weight in weights if compiled.search(weight)]
        if not matched:
            raise _unmatched(cause, pattern, tensors)
        found.update(dict.fromkeys(matched, cause))
    return found


def _unmatched(cause: str, wanted: str, tensors: list[TensorEntry]) -> ConfigurationError:
    names = [_layer(e.name) for e in tensors if _is_weight(e) and len(e.name) <= _LONGEST][:_SPELLED_OUT]
    near = get_close_matches(wanted[:_LONGEST], names, 3, 0.5) or names[:3]
    hint = f"; weights are named like {', '.join(map(repr, near))}" if near else "; this checkpoint has no weights"
    return ConfigurationError(f"{cause}: matches no weight of this checkpoint{hint}")
