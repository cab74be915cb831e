"""Which modality a model has, decided from evidence that others collected, and the reason in one sentence.

Strongest first: the user's word, `metadata.json`, pipeline class, component class, `architectures` and `model_type`,
the safetensors header, tensor names. Nothing decides: an error that lists what was looked at, never a guess.
Knows strings only: no files, no numpy.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Final, Protocol

from arrowquant_nb.core.modality_table import (
    AMBIGUOUS_CLASSES,
    AUDIO_CLASSES,
    HEADER_ARCHITECTURES,
    IMAGE_CLASSES,
    NOT_DIFFUSION,
    TENSOR_KEYS,
    TEXT_CLASSES,
    TEXT_MODEL_TYPES,
    VIDEO_AND_AUDIO_CLASSES,
    VIDEO_CLASSES,
)
from arrowquant_nb.errors import ConfigurationError, MetadataError

MODALITIES: Final = ("text", "code", "image", "audio")
# "coder" as in Dream-Coder, but not encoder, decoder or autoencoder.
_CODER: Final = re.compile(r"(?<!en)(?<!de)coder", re.IGNORECASE)
_WRAPPERS: Final = re.compile(r"^(?:(?:model|diffusion_model|net|_orig_mod|module|backbone)\.)+")
_OVERRIDE: Final = "say modality=text, code, image or audio to decide yourself"


class ModalityEvidence(Protocol):
    """Strings found in a model's files, exactly as found."""

    @property
    def model_name(self) -> str:
        """Repository, folder or file name."""

    @property
    def metadata_modality(self) -> str | None:
        """`modality` of `metadata.json`."""

    @property
    def metadata_error(self) -> str | None:
        """Why `metadata.json` could not be read."""

    @property
    def pipeline_class(self) -> str | None:
        """`_class_name` of `model_index.json`."""

    @property
    def component_class(self) -> str | None:
        """`_class_name` of `config.json`."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """`architectures` of `config.json`."""

    @property
    def model_type(self) -> str | None:
        """`model_type` of `config.json`."""

    @property
    def header_architecture(self) -> str | None:
        """`modelspec.architecture` of the safetensors header."""

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors."""

    @property
    def looked_at(self) -> tuple[str, ...]:
        """What was found where, one phrase each."""


def detect(evidence: ModalityEvidence, explicit: str | None) -> tuple[str, str]:
    """Return the modality (text, code, image or audio) and why.

    Parameters
    ----------
    evidence : ModalityEvidence
        What the files say.
    explicit : str or None
        The user's choice; it wins over everything and also admits models that are refused otherwise.

    Raises
    ------
    ConfigurationError
        `explicit` is not a modality.
    MetadataError
        `metadata.json` is unusable, the model is not a diffusion model, or nothing says what it is.
    """
    if explicit is not None:
        if explicit not in MODALITIES:
            raise ConfigurationError(f"modality {explicit!r} is unknown; use one of {', '.join(MODALITIES)}")
        return explicit, "set by the user"
    if evidence.metadata_modality is not None:
        return _exact(evidence.metadata_modality), "metadata.json says so"
    if evidence.metadata_error is not None:
        raise MetadataError(f"{evidence.metadata_error}; or {_OVERRIDE}")
    for found in (_from_classes(evidence), _from_header(evidence), _from_tensor_names(evidence.tensor_names)):
        if found is not None:
            return found
    raise MetadataError(
        f"cannot tell the modality of {evidence.model_name[:200]!r}; "
        f"looked at: {'; '.join(evidence.looked_at)}; {_OVERRIDE}"
    )


def class_modality(name: str) -> str | None:
    """Return image, video, video and audio, audio or text for a class name, None when it is not known.

    A table entry stands for the whole name or for its first CamelCase words, so `Flux` covers
    `FluxTransformer2DModel` and not `Fluxional`.
    """
    for modality, table in (
        ("audio", AUDIO_CLASSES),
        ("video and audio", VIDEO_AND_AUDIO_CLASSES),
        ("video", VIDEO_CLASSES),
        ("image", IMAGE_CLASSES),
        ("text", TEXT_CLASSES),
    ):
        for entry in table:
            if name.startswith(entry) and not name[len(entry) : len(entry) + 1].islower():
                return modality
    return None


def _exact(value: str) -> str:
    if value in MODALITIES:
        return value
    wanted = value.strip().strip("\"'").lower()
    near = [wanted] if wanted in MODALITIES else difflib.get_close_matches(wanted[:40], list(MODALITIES), 1)
    hint = f'; write "modality": "{near[0]}"' if near else ""
    raise MetadataError(
        f"metadata.json: modality must be exactly one of {', '.join(MODALITIES)}, found {value[:80]!r}{hint}; "
        f"or {_OVERRIDE}"
    )


def _from_classes(evidence: ModalityEvidence) -> tuple[str, str] | None:
    pipeline = evidence.pipeline_class
    if pipeline is not None:
        modality = class_modality(pipeline)
        if modality is not None:
            return _named(modality, f"pipeline class {pipeline[:120]}", evidence.model_name)
    component = evidence.component_class
    if component is not None:
        modality = class_modality(component)
        if modality is not None:
            return _named(modality, f"model class {component[:120]}", evidence.model_name)
        if component in AMBIGUOUS_CLASSES and pipeline is None:
            return "image", f"model class {component}, which nearly always makes images (no pipeline says otherwise)"
    return _from_architectures(evidence)


def _from_architectures(evidence: ModalityEvidence) -> tuple[str, str] | None:
    model_type = evidence.model_type
    if model_type in NOT_DIFFUSION:
        raise MetadataError(
            f"model_type {model_type!r} is not a diffusion model ({NOT_DIFFUSION[model_type]}); "
            f"{_OVERRIDE} if it is one"
        )
    for name in evidence.architectures:
        modality = class_modality(name)
        if modality is not None:
            return _named(modality, f"architecture {name[:120]}", evidence.model_name)
    if model_type is not None and model_type in TEXT_MODEL_TYPES:
        return _named("text", f"model_type {model_type!r}", evidence.model_name)
    for name in evidence.architectures:
        if name.endswith("ForMaskedLM"):
            return _named(
                "text", f"architecture {name[:120]}: a masked language model, which unmasks tokens", evidence.model_name
            )
        if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
            raise MetadataError(
                f"architecture {name[:120]!r} writes text from left to right and is not a diffusion model; "
                f"{_OVERRIDE} if it was trained as one"
            )
    return None


def _from_header(evidence: ModalityEvidence) -> tuple[str, str] | None:
    found = evidence.header_architecture
    if found is None or "/" in found:  # "…/lora" and the like are parts of models
        return None
    for modality, prefixes in HEADER_ARCHITECTURES:
        for prefix in prefixes:
            if found == prefix or found.startswith((prefix + "-", prefix + "_")):
                return modality, f"the safetensors header says modelspec.architecture {found[:80]!r}"
    return None


def _from_tensor_names(names: Sequence[str]) -> tuple[str, str] | None:
    for modality, family, pattern in TENSOR_KEYS:
        compiled = re.compile(pattern)
        for name in names:
            if len(name) < 512 and compiled.match(_WRAPPERS.sub("", name)) is not None:
                return modality, f"tensor {name!r} is one of {family}"
    return None


def _named(modality: str, reason: str, model_name: str) -> tuple[str, str]:
    if modality.startswith("video"):
        return "image", f"{reason} ({modality}; quantized with the image strategy)"
    if modality == "text" and _CODER.search(model_name) is not None:
        return "code", f"{reason}, and the name {model_name[:200]!r} contains 'coder'"
    return modality, reason
