"""The policy and the reader against the real classes of diffusers and transformers; random weights, no downloads."""

import warnings

import numpy as np
import pytest

from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.core.modality import detect
from arrowquant_nb.storage.checkpoint import open_checkpoint
from arrowquant_nb.storage.policy import assign_bit_widths
from arrowquant_nb.storage.safetensors_file import TensorEntry

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch")
        return pytest.importorskip("diffusers")


SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}


@pytest.mark.parametrize(
    ("class_name", "config", "n_params", "kept", "raised"),
    [  # shares of all parameters, in percent
        ("UNet2DConditionModel", SDXL, 2.567e9, 1.0, 1.0),
        ("UNet2DConditionModel", {"cross_attention_dim": 768}, 0.860e9, 3.2, 3.2),
        ("FluxTransformer2DModel", {}, 11.89e9, 0.5, 27.3),
        ("SD3Transformer2DModel", {}, 0.867e9, 2.8, 33.0),  # 1.2 is the stored position table
        ("PixArtTransformer2DModel", {}, 0.605e9, 0.6, 1.4),
        ("DiTTransformer2DModel", {}, 0.750e9, 10.9, 29.8),
        ("StableAudioDiTModel", {}, 1.057e9, 1.0, 0.0),
        ("WanTransformer3DModel", {}, 14.29e9, 0.6, 1.2),
        ("SanaTransformer2DModel", {}, 1.604e9, 1.4, 2.0),
        ("CogVideoXTransformer3DModel", {}, 1.694e9, 0.8, 21.0),
    ],
)
def test_shares_that_stay_in_float(diffusers, class_name, config, n_params, kept, raised):
    import torch

    with torch.device("meta"):
        model = getattr(diffusers, class_name)(**config)
    entries = [TensorEntry(n, tuple(p.shape), "bfloat16", None, 0, 0) for n, p in model.state_dict().items()]
    found = assign_bit_widths(entries, class_name, "image", DiffusionQuantConfig(bit_width=4))
    total = sum(entry.n_elements for entry in entries)
    share = {
        bits: 100 * sum(e.n_elements for e, a in zip(entries, found, strict=True) if a.bit_width == bits) / total
        for bits in (4, 8, 16)
    }
    assert total == pytest.approx(n_params, rel=0.01)
    assert share[16] <= kept
    assert share[8] <= raised
    assert share[4] == pytest.approx(100 - share[8] - share[16])


def tiny_dit(diffusers):
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=1,
        out_channels=2,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=11,
    )


def tiny_flux(diffusers):
    return diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=(8, 12, 12),
        guidance_embeds=True,
    )


def tiny_unet(diffusers):
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


SAVES = {
    "plain": {},
    "variant": {"variant": "fp16"},
    "shards": {"max_shard_size": "500KB"},
    "variant shards": {"variant": "fp16", "max_shard_size": "500KB"},
}


@pytest.mark.parametrize("make", [tiny_dit, tiny_flux, tiny_unet])
@pytest.mark.parametrize("save", SAVES)
def test_what_diffusers_saves_is_read_bit_for_bit(diffusers, tmp_path, make, save):
    model = make(diffusers)
    model.save_pretrained(tmp_path, **SAVES[save])
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.kind, checkpoint.class_name) == ("diffusers_component", type(model).__name__)
        assert checkpoint.variant == SAVES[save].get("variant")
        assert detect(checkpoint.modality_evidence, None)[0] == "image"
        state = model.state_dict()
        assert set(checkpoint.entries) == set(state)
        for name, entry in checkpoint.entries.items():
            expected = state[name].numpy()
            assert entry.shape == expected.shape
            assert np.array_equal(checkpoint.read_rows(name, 0, entry.rows).reshape(expected.shape), expected)


def test_a_pipeline_as_diffusers_saves_it(diffusers, tmp_path):
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=1)
    diffusers.DiTPipeline(tiny_dit(diffusers), vae, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.kind, checkpoint.component) == ("diffusers_pipeline", "transformer")
        assert detect(checkpoint.modality_evidence, None) == ("image", "pipeline class DiTPipeline")
        targets = [target for _, target in checkpoint.metadata_files]
        assert targets == ["config.json", "model_index.json", "scheduler/scheduler_config.json"]


def test_a_masked_language_model_with_tied_head_as_transformers_saves_it(diffusers, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=512, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.kind, checkpoint.class_name) == ("transformers", "BertForMaskedLM")
        assert detect(checkpoint.modality_evidence, None)[0] == "text"
        assert "cls.predictions.decoder.weight" not in checkpoint.entries
        found = assign_bit_widths(
            checkpoint.entries.values(), "BertForMaskedLM", "text", DiffusionQuantConfig(bit_width=2)
        )
        widths = {a.name: a.bit_width for a in found}
        assert widths["bert.embeddings.word_embeddings.weight"] == 8
        assert widths["bert.embeddings.position_embeddings.weight"] == 16
        assert widths["bert.encoder.layer.1.intermediate.dense.weight"] == 2
        state = model.state_dict()
        for name, entry in checkpoint.entries.items():
            rows = checkpoint.read_rows(name, 0, entry.rows)
            assert np.array_equal(rows.reshape(entry.shape), state[name].numpy())
