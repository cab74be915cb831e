import numpy as np
import pytest

from arrowquant_nb.core.modality import detect
from arrowquant_nb.errors import MetadataError
from arrowquant_nb.storage.checkpoint import open_checkpoint


@pytest.fixture
def folder(tmp_path, write):
    write(tmp_path / "model.safetensors", {"a.weight": np.ones((2, 2), np.float32)})
    return tmp_path


def evidence(path):
    return open_checkpoint(path).modality_evidence


def test_it_collects_strings_exactly_as_found(folder, write_json):
    write_json(folder / "metadata.json", {"modality": " text ", "nested": {"modality": "audio"}})
    write_json(
        folder / "config.json",
        {"architectures": ["DreamModel"], "model_type": "Dream", "_name_or_path": "org/Dream-Coder"},
    )
    found = evidence(folder)
    assert found.metadata_modality == " text "
    assert (found.architectures, found.model_type) == (("DreamModel",), "Dream")
    assert found.model_name == f"{folder.name} org/Dream-Coder"
    assert found.tensor_names == ("a.weight",)
    assert len(found.looked_at) == 4


@pytest.mark.parametrize("metadata", [{"nested": {"modality": "audio"}}, {}, {"modality": None}, {"Modality": "audio"}])
def test_only_a_top_level_modality_counts(folder, write_json, metadata):
    write_json(folder / "metadata.json", metadata)
    assert evidence(folder).metadata_modality is None


@pytest.mark.parametrize("value", [5, ["text"], {"a": 1}, True])
def test_a_modality_that_is_no_string_is_shown_as_json_and_refused(folder, write_json, value):
    write_json(folder / "metadata.json", {"modality": value})
    with pytest.raises(MetadataError, match=r"metadata\.json: modality must be exactly one of"):
        detect(evidence(folder), None)


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"modality": "text", "modality": "audio"}', "[" * 100, '{"a": "' + "x" * (1 << 20) + '"}']
)
def test_unusable_metadata_matters_only_without_an_override(folder, write_json, text):
    write_json(folder / "metadata.json", text)
    write_json(folder / "config.json", {"_class_name": "FluxTransformer2DModel"})
    found = evidence(folder)
    with pytest.raises(MetadataError, match=r"metadata\.json: .*say modality="):
        detect(found, None)
    assert detect(found, "audio") == ("audio", "set by the user")


def test_the_header_and_the_tensor_names_speak_when_nothing_else_does(tmp_path, write):
    tensors = {"model.diffusion_model.input_blocks.3.0.op.weight": np.ones((2, 2, 3, 3), np.float32)}
    assert detect(evidence(write(tmp_path / "a.safetensors", tensors)), None) == (
        "image",
        "tensor 'model.diffusion_model.input_blocks.3.0.op.weight' is one of Stable Diffusion's UNet",
    )
    path = write(tmp_path / "b.safetensors", {"x": np.ones(2, np.float32)}, {"modelspec.architecture": "stable-audio"})
    assert detect(evidence(path), None)[0] == "audio"


def test_nothing_known_lists_everything_looked_at(folder, write_json):
    write_json(folder / "config.json", {"model_type": "unheard-of"})
    with pytest.raises(MetadataError) as caught:
        detect(evidence(folder), None)
    for part in (
        "metadata.json: absent",
        "config.json: model_type 'unheard-of'",
        "safetensors header: silent",
        "1 tensor names ('a.weight')",
        "say modality=text, code, image or audio",
    ):
        assert part in str(caught.value)


def test_a_huge_class_name_does_not_flood_the_message(folder, write_json):
    write_json(folder / "config.json", {"_class_name": "Q" * 500_000, "model_type": "q" * 400_000})
    with pytest.raises(MetadataError) as caught:
        detect(evidence(folder), None)
    assert len(str(caught.value)) < 2000
