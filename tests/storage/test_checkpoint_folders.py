import json
import os

import numpy as np
import pytest

from arrowquant_nb.errors import (
    CheckpointError,
    ConfigurationError,
    ModelNotFoundError,
)
from arrowquant_nb.storage.checkpoint import open_checkpoint


@pytest.fixture
def pipeline(tmp_path, write, write_json, weights):
    root = tmp_path / "pipe"
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
    }
    write_json(root / "model_index.json", {"_class_name": "AudioLDMPipeline", **parts})
    for part in ("unet", "vae"):
        write_json(root / part / "config.json", {"_class_name": parts[part][1]})
        write(root / part / "diffusion_pytorch_model.safetensors", {f"{part}.weight": weights((2, 4))})
    write_json(root / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler"})
    write_json(root / "tokenizer" / "tokenizer_config.json", {})
    (root / "tokenizer" / "tokenization_evil.py").write_text("raise SystemExit")
    return root


def test_a_pipeline_opens_its_denoiser(pipeline):
    checkpoint = open_checkpoint(pipeline)
    assert (checkpoint.kind, checkpoint.component, checkpoint.class_name) == (
        "diffusers_pipeline",
        "unet",
        "UNet2DConditionModel",
    )
    assert list(checkpoint.entries) == ["unet.weight"]
    assert checkpoint.modality_evidence.pipeline_class == "AudioLDMPipeline"
    targets = {target: source for source, target in checkpoint.metadata_files}
    assert sorted(targets) == [
        "config.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ]
    assert targets["config.json"] == pipeline / "unet" / "config.json"


def test_a_transformer_goes_before_a_unet_and_a_component_can_be_chosen(pipeline, write, write_json, weights):
    index = json.loads((pipeline / "model_index.json").read_text())
    write_json(
        pipeline / "model_index.json", index | {"transformer": ["diffusers", "X"], "transformer_2": ["diffusers", "X"]}
    )
    for part in ("transformer", "transformer_2"):
        write(pipeline / part / "diffusion_pytorch_model.safetensors", {f"{part}.weight": weights((2, 4))})
    assert open_checkpoint(pipeline).component == "transformer"
    assert list(open_checkpoint(pipeline, component="transformer_2").entries) == ["transformer_2.weight"]
    assert list(open_checkpoint(pipeline, component="vae").entries) == ["vae.weight"]


@pytest.mark.parametrize("component", ["nope", "safety_checker", "../pipe/unet", "_class_name", ""])
def test_an_absent_component_lists_those_that_are_there(pipeline, component):
    with pytest.raises(ConfigurationError, match="choose with component= one of: unet, vae"):
        open_checkpoint(pipeline, component=component)


def test_a_pipeline_without_a_denoiser_asks(pipeline, write_json):
    write_json(pipeline / "model_index.json", {"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"]})
    with pytest.raises(ConfigurationError, match=r"neither a transformer nor a unet.*one of: vae"):
        open_checkpoint(pipeline)


def test_a_component_folder_knows_the_pipeline_around_it(pipeline):
    checkpoint = open_checkpoint(pipeline / "unet")
    assert (checkpoint.kind, checkpoint.component) == ("diffusers_component", None)
    assert checkpoint.modality_evidence.pipeline_class == "AudioLDMPipeline"
    with pytest.raises(ConfigurationError, match="needs a pipeline folder"):
        open_checkpoint(pipeline / "unet", component="vae")


def test_a_relative_path_works(pipeline, monkeypatch):
    monkeypatch.chdir(pipeline / "unet")
    assert open_checkpoint(".").class_name == "UNet2DConditionModel"


def test_a_language_model_folder(tmp_path, write, write_json, weights):
    write_json(
        tmp_path / "config.json",
        {"architectures": ["LLaDAModelLM"], "model_type": "llada", "auto_map": {"x": "evil.X"}},
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    write_json(tmp_path / "tokenizer.json", {})
    write(tmp_path / "model.safetensors", {"model.transformer.wte.weight": weights((8, 4))})
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.kind, checkpoint.class_name) == ("transformers", "LLaDAModelLM")
    assert [target for _, target in checkpoint.metadata_files] == ["config.json", "tokenizer.json"]


SHARD_STYLES = {
    "transformers": ("model-{:05}-of-{:05}.safetensors", "model.safetensors.index.json", None),
    "diffusers": (
        "diffusion_pytorch_model-{:05}-of-{:05}.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        None,
    ),
    "variant first": (
        "diffusion_pytorch_model.fp16-{:05}-of-{:05}.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "fp16",
    ),
    "variant last": (
        "diffusion_pytorch_model-{:05}-of-{:05}.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "fp16",
    ),
    "variant in the middle": ("model.fp16-{:05}-of-{:05}.safetensors", "model.fp16.safetensors.index.json", "fp16"),
}


@pytest.mark.parametrize("style", SHARD_STYLES)
@pytest.mark.parametrize("with_index", [True, False])
def test_shards_with_and_without_index(tmp_path, write, write_json, weights, style, with_index):
    shard, index, variant = SHARD_STYLES[style]
    weight_map = {}
    for number in (1, 2, 3):
        write(tmp_path / shard.format(number, 3), {f"l{number}.weight": weights((2, 4), seed=number)})
        weight_map[f"l{number}.weight"] = shard.format(number, 3)
    if with_index:
        write_json(tmp_path / index, {"metadata": {"total_size": 1}, "weight_map": weight_map})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.variant == variant
    assert list(checkpoint.entries) == ["l1.weight", "l2.weight", "l3.weight"]
    assert np.array_equal(checkpoint.read_rows("l3.weight", 0, 2), weights((2, 4), seed=3))
    (tmp_path / shard.format(2, 3)).unlink()
    with pytest.raises(
        CheckpointError, match="-00002-of-00003.* is missing" if with_index else "2 of 3 shards are here"
    ):
        open_checkpoint(tmp_path)


def test_a_scale_may_lie_in_another_shard(tmp_path, write, weights):
    codes = weights((4, 8), "float8_e4m3fn")
    write(tmp_path / "model-00001-of-00002.safetensors", {"a.weight": codes})
    write(tmp_path / "model-00002-of-00002.safetensors", {"a.weight_scale": np.float32(2)})
    checkpoint = open_checkpoint(tmp_path)
    assert np.array_equal(checkpoint.read_rows("a.weight", 0, 4), codes.astype(np.float32) * 2)


def test_variants(tmp_path, write, weights):
    name = "diffusion_pytorch_model{}.safetensors"
    write(tmp_path / name.format(".fp16"), {"half.weight": weights((2, 4), "float16")})
    assert open_checkpoint(tmp_path).variant == "fp16"
    with pytest.raises(ConfigurationError, match="no weights of variant 'bf16'; there are: fp16"):
        open_checkpoint(tmp_path, variant="bf16")
    write(tmp_path / name.format(".non_ema"), {"other.weight": weights((2, 4))})
    with pytest.raises(ConfigurationError, match="one of: fp16, non_ema"):
        open_checkpoint(tmp_path)
    write(tmp_path / name.format(""), {"plain.weight": weights((2, 4))})
    assert list(open_checkpoint(tmp_path).entries) == ["plain.weight"]
    assert list(open_checkpoint(tmp_path, variant="fp16").entries) == ["half.weight"]


def test_the_config_decides_between_two_stems(tmp_path, write, write_json, weights):
    write(tmp_path / "model.safetensors", {"lm.weight": weights((2, 4))})
    write(tmp_path / "diffusion_pytorch_model.safetensors", {"unet.weight": weights((2, 4))})
    write_json(tmp_path / "config.json", {"model_type": "llada"})
    assert list(open_checkpoint(tmp_path).entries) == ["lm.weight"]
    write_json(tmp_path / "config.json", {"_class_name": "UNet2DModel"})
    assert list(open_checkpoint(tmp_path).entries) == ["unet.weight"]


def test_the_same_weights_twice_is_an_error(tmp_path, write, weights):
    write(tmp_path / "model.safetensors", {"a.weight": weights((2, 4))})
    write(tmp_path / "model-00001-of-00001.safetensors", {"a.weight": weights((2, 4))})
    with pytest.raises(CheckpointError, match="holds the same weights twice"):
        open_checkpoint(tmp_path)


def test_a_file_of_any_name_is_taken_when_it_is_the_only_one(tmp_path, write, weights):
    write(tmp_path / "llada.safetensors", {"a.weight": weights((2, 4))})
    assert list(open_checkpoint(tmp_path).entries) == ["a.weight"]
    write(tmp_path / "extra.safetensors", {"b.weight": weights((2, 4))})
    with pytest.raises(CheckpointError, match=r"cannot tell which weights are meant \('extra.safetensors', 'llada"):
        open_checkpoint(tmp_path)


def test_one_shard_alone_is_refused(tmp_path, write, weights):
    path = write(tmp_path / "model-00001-of-00002.safetensors", {"a.weight": weights((2, 4))})
    with pytest.raises(CheckpointError, match="one shard of several; give the folder"):
        open_checkpoint(path)


def test_nothing_there(tmp_path):
    for path in (tmp_path / "absent", "nul\0byte"):
        with pytest.raises(ModelNotFoundError, match="nothing there"):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"no \.safetensors weights here"):
        open_checkpoint(tmp_path)


def test_options_for_folders_are_refused_for_a_file(tmp_path, write, weights):
    path = write(tmp_path / "m.safetensors", {"a.weight": weights((2, 4))})
    with pytest.raises(ConfigurationError, match="component='unet' makes sense for a folder only"):
        open_checkpoint(path, component="unet")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "v1-5.ckpt"])
def test_pickles_are_refused_unopened_with_the_conversion(tmp_path, name):
    bomb = tmp_path / "bomb"
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n(S'touch " + os.fsencode(bomb) + b"'\ntR.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=r"safetensors\.torch\.save_file"):
            open_checkpoint(path)
    assert not bomb.exists()
