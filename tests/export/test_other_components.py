"""An export of a pipeline's component becomes the whole pipeline when the folder it comes from is given."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from arrowquant_nb import CheckpointError, ConfigurationError, ModelNotFoundError, export_model
from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.export.folder_reader import open_exported
from tests.conftest import mixed_tensors, write_checkpoint

INDEX = {
    "_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"], "id2label": {"0": "none"},
    "safety_checker": [None, None],
}  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline") / "source"
    write_checkpoint(root / "transformer", mixed_tensors())
    (root / "model_index.json").write_text(json.dumps(INDEX))
    for folder, name in (("vae", "config.json"), ("scheduler", "scheduler_config.json")):
        (root / folder).mkdir()
        (root / folder / name).write_text("{}")
    save_file({"w": np.ones(3, np.float32)}, root / "vae" / "diffusion_pytorch_model.safetensors")
    (root / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    (root / "unlisted").mkdir()
    return root


@pytest.fixture(scope="module")
def model(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "model"
    ArrowQuantV2(DiffusionQuantConfig(modality="image")).quantize_diffusion_model(pipeline, path)
    return path


@pytest.mark.parametrize("target", ["diffusers", "safetensors"])
def test_other_components_are_copied_and_pickles_stay_behind(pipeline, model, tmp_path, target):
    report = export_model(model, target, tmp_path / "out", pipeline=pipeline)
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {
        "export.json", "model_index.json", "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
    }  # fmt: skip
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (pipeline / weights).read_bytes()
    assert any("not copied" in line and "vae/diffusion_pytorch_model.bin" in line for line in report.remarks)
    assert not any("it lacks" in line for line in report.remarks)
    if target == "diffusers":
        assert set(open_exported(tmp_path / "out")) == set(mixed_tensors())


@pytest.mark.parametrize("target", ["diffusers", "safetensors"])
def test_without_the_pipeline_the_report_says_what_the_folder_lacks(models, model, tmp_path, target):
    report = export_model(model, target, tmp_path / "out")
    assert any("holds transformer/ alone" in line and "it lacks vae: " in line for line in report.remarks)
    report = export_model(models.quantized("mixed"), target, tmp_path / "none")
    assert not any("it lacks" in line for line in report.remarks)


def test_a_pipeline_that_is_not_the_models_is_refused(models, model, pipeline, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigurationError, match=r"has no model_index\.json"):
        export_model(model, "diffusers", tmp_path / "out", pipeline=other)
    (other / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"]}))
    with pytest.raises(ConfigurationError, match="has no component 'transformer'"):
        export_model(model, "diffusers", tmp_path / "out", pipeline=other)
    with pytest.raises(ConfigurationError, match="not quantized from a pipeline"):
        export_model(models.quantized("mixed"), "diffusers", tmp_path / "out", pipeline=pipeline)
    with pytest.raises(ConfigurationError, match="gguf holds no pipeline"):
        export_model(model, "gguf", tmp_path / "out.gguf", pipeline=pipeline)
    with pytest.raises(ModelNotFoundError):
        export_model(model, "diffusers", tmp_path / "out", pipeline=tmp_path / "none")
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_a_link_that_leaves_the_pipeline_is_not_followed(model, pipeline, tmp_path):
    import shutil

    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    copy = tmp_path / "copy"
    shutil.copytree(pipeline, copy)
    (copy / "vae" / "notes.txt").symlink_to(secret)
    with pytest.raises(CheckpointError, match="leads outside the model folder"):
        export_model(model, "diffusers", tmp_path / "out", pipeline=copy)
    assert not (tmp_path / "out").exists()
