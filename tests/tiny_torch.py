"""Tiny diffusers and transformers models with random weights, and the calls that denoise with them.

Each is built from its config in well under a second; the import of diffusers and transformers, 10 to 20 s, is paid by
the first test that needs one.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import (
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    ChromaTransformer2DModel,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HunyuanImageTransformer2DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableAudioDiTModel,
    StableDiffusionPipeline,
    UNet1DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from transformers import BertConfig, BertForMaskedLM, CLIPTextConfig, CLIPTextModel

N = 2


def _randn(*shape):
    return torch.randn(*shape)


def dit():
    model = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=4, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False,
        activation_fn="gelu-approximate", attention_bias=True,
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 4, 4, 4), "timestep": torch.full((N,), t), "class_labels": torch.arange(N),
    }  # fmt: skip


def pixart():
    model = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, cross_attention_dim=128, caption_channels=64, norm_type="ada_norm_single",
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 4, 8, 8), "encoder_hidden_states": _randn(N, 5, 64),
        "timestep": torch.full((N,), t),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip


def unet(**options):
    model = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8, **options,
    )  # fmt: skip
    return model, lambda t: {
        "sample": _randn(N, 4, 8, 8), "timestep": torch.tensor(t), "encoder_hidden_states": _randn(N, 5, 32),
    }  # fmt: skip


def sdxl_unet():
    model, call = unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
        use_linear_projection=True, transformer_layers_per_block=2,
    )  # fmt: skip
    extra = {"text_embeds": torch.randn(N, 32), "time_ids": torch.ones(N, 6)}
    return model, lambda t: {**call(t), "added_cond_kwargs": extra}


def sd3(**options):
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, caption_projection_dim=128, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=8, **options,
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 4, 8, 8), "encoder_hidden_states": _randn(N, 5, 64),
        "pooled_projections": _randn(N, 32), "timestep": torch.full((N,), float(t)),
    }  # fmt: skip


def flux(**options):
    sizes = {
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 32,
        "num_attention_heads": 4, "joint_attention_dim": 64, "pooled_projection_dim": 32,
        "axes_dims_rope": (8, 12, 12), "guidance_embeds": True,
    }  # fmt: skip
    model = FluxTransformer2DModel(**{**sizes, **options})
    return model, lambda t: {
        "hidden_states": _randn(N, 16, model.config.in_channels),
        "encoder_hidden_states": _randn(N, 5, model.config.joint_attention_dim),
        "pooled_projections": _randn(N, model.config.pooled_projection_dim),
        "timestep": torch.full((N,), t / 1000), "guidance": torch.full((N,), 3.5),
        "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip


def flux2():
    model = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, timestep_guidance_channels=32, axes_dims_rope=(8, 8, 8, 8),
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 16, 16), "encoder_hidden_states": _randn(N, 5, 64),
        "timestep": torch.full((N,), t / 1000), "guidance": torch.full((N,), 3.5),
        "img_ids": torch.zeros(16, 4), "txt_ids": torch.zeros(5, 4),
    }  # fmt: skip


def hunyuan_video(**options):
    model = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=32, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=64, pooled_projection_dim=32, rope_axes_dim=(8, 12, 12), **options,
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 4, 2, 8, 8), "encoder_hidden_states": _randn(N, 5, 64),
        "encoder_attention_mask": torch.ones(N, 5, dtype=torch.bool), "pooled_projections": _randn(N, 32),
        "timestep": torch.full((N,), t), "guidance": torch.full((N,), 3500.0),
    }  # fmt: skip


def hunyuan_video15():
    model = HunyuanVideo15Transformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=32, num_layers=1, num_refiner_layers=1,
        text_embed_dim=64, text_embed_2_dim=32, image_embed_dim=32, rope_axes_dim=(8, 12, 12),
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 4, 2, 4, 4), "timestep": torch.full((N,), float(t)),
        "encoder_hidden_states": _randn(N, 5, 64), "encoder_attention_mask": torch.ones(N, 5, dtype=torch.bool),
        "encoder_hidden_states_2": _randn(N, 3, 32), "encoder_attention_mask_2": torch.ones(N, 3, dtype=torch.bool),
        "image_embeds": _randn(N, 2, 32),
    }  # fmt: skip


def hunyuan_image():
    model = HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=32, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=64, rope_axes_dim=(16, 16),
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 4, 4, 4), "timestep": torch.full((N,), float(t)),
        "encoder_hidden_states": _randn(N, 5, 64), "encoder_attention_mask": torch.ones(N, 5, dtype=torch.bool),
    }  # fmt: skip


def ltx():
    model = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=32, cross_attention_dim=128,
        num_layers=1, caption_channels=64,
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 16, 4), "encoder_hidden_states": _randn(N, 5, 64),
        "timestep": torch.full((N,), t), "encoder_attention_mask": torch.ones(N, 5, dtype=torch.bool),
        "num_frames": 1, "height": 4, "width": 4,
    }  # fmt: skip


def ltx2(**options):
    """Two blocks: what the video says to the audio in the first is heard in the video of the second."""
    model = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=32, cross_attention_dim=128,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=4, audio_attention_head_dim=16,
        audio_cross_attention_dim=64, num_layers=2, caption_channels=64, **options,
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 16, 4), "audio_hidden_states": _randn(N, 6, 4),
        "encoder_hidden_states": _randn(N, 5, 64), "audio_encoder_hidden_states": _randn(N, 5, 64),
        "timestep": torch.full((N, 16), float(t)), "audio_timestep": torch.full((N, 6), float(t)),
        "sigma": torch.full((N,), float(t)), "num_frames": 1, "height": 4, "width": 4, "audio_num_frames": 6,
    }  # fmt: skip


def chroma():
    model = ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, axes_dims_rope=(8, 12, 12), approximator_hidden_dim=32, approximator_layers=1,
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 16, 16), "encoder_hidden_states": _randn(N, 5, 64),
        "timestep": torch.full((N,), t / 1000), "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip


def qwen_image():
    model = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 16, 16), "encoder_hidden_states": _randn(N, 5, 64),
        "encoder_hidden_states_mask": torch.ones(N, 5, dtype=torch.bool), "timestep": torch.full((N,), t / 1000),
        "img_shapes": [[(1, 4, 4)]] * N,
    }  # fmt: skip


def sana():
    model = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=32, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=64, cross_attention_dim=128, caption_channels=64,
        sample_size=8,
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 4, 8, 8), "encoder_hidden_states": _randn(N, 5, 64), "timestep": torch.full((N,), t),
    }  # fmt: skip


def cogvideox():
    model = CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=4, time_embed_dim=32,
        text_embed_dim=32, num_layers=1, sample_width=8, sample_height=8, sample_frames=5, max_text_seq_length=5,
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 2, 4, 8, 8), "encoder_hidden_states": _randn(N, 5, 32),
        "timestep": torch.full((N,), t),
    }  # fmt: skip


def wan(**options):
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=32, ffn_dim=256, num_layers=1, rope_max_seq_len=32, **options,
    )  # fmt: skip
    image = {"encoder_hidden_states_image": _randn(N, 3, 32)} if "image_dim" in options else {}
    return model, lambda t: {
        "hidden_states": _randn(N, 4, 2, 8, 8), "timestep": torch.full((N,), t),
        "encoder_hidden_states": _randn(N, 512 if image else 5, 32), **image,
    }  # fmt: skip


def stable_audio():
    model = StableAudioDiTModel(
        sample_size=16, in_channels=8, num_layers=1, attention_head_dim=32, num_attention_heads=4,
        num_key_value_attention_heads=2, out_channels=8, cross_attention_dim=32, time_proj_dim=32,
        global_states_input_dim=32, cross_attention_input_dim=32,
    )  # fmt: skip
    return model, lambda t: {
        "hidden_states": _randn(N, 8, 16), "timestep": torch.full((N,), t / 1000),
        "encoder_hidden_states": _randn(N, 5, 32), "global_hidden_states": _randn(N, 1, 32),
        "rotary_embedding": None,
    }  # fmt: skip


def audioldm2():
    model = AudioLDM2UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=(32, 32),
        attention_head_dim=8, norm_num_groups=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, lambda t: {
        "sample": _randn(N, 4, 8, 8), "timestep": torch.tensor(t), "encoder_hidden_states": _randn(N, 5, 32),
        "encoder_hidden_states_1": _randn(N, 5, 32),
    }  # fmt: skip


def unet1d():
    model = UNet1DModel(
        sample_size=64, sample_rate=16000, in_channels=2, out_channels=2, extra_in_channels=64,
        block_out_channels=(32, 64), layers_per_block=1, down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"), mid_block_type="UNetMidBlock1D",
        use_timestep_embedding=False, flip_sin_to_cos=True, time_embedding_type="fourier",
    )  # fmt: skip
    return model, lambda t: {"sample": _randn(N, 2, 64), "timestep": torch.full((N,), t / 1000)}


def bert():
    config = BertConfig(
        vocab_size=120, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=32,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, 120, (4, 24)))

    def call(t):
        masked = torch.arange(24) < max(1, round(24 * t / 1000))
        return {"input_ids": torch.where(masked, MASK, ids)}

    return model, call


class LLaDABlock(torch.nn.Module):
    """Llama's block under the names of LLaDA's published tensors, its attention over all tokens, without positions."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.heads = heads
        self.attn_norm, self.ff_norm = torch.nn.RMSNorm(width), torch.nn.RMSNorm(width)
        sizes = {
            "q_proj": (width, width), "k_proj": (width, width), "v_proj": (width, width), "attn_out": (width, width),
            "ff_proj": (width, hidden), "up_proj": (width, hidden), "ff_out": (hidden, width),
        }  # fmt: skip
        for name, (inputs, outputs) in sizes.items():
            setattr(self, name, torch.nn.Linear(inputs, outputs, bias=False))

    def forward(self, x):
        normed = self.attn_norm(x)
        split = (layer(normed).unflatten(2, (self.heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        attended = torch.nn.functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in split))
        x = x + self.attn_out(attended.transpose(1, 2).flatten(2))
        normed = self.ff_norm(x)
        return x + self.ff_out(torch.nn.functional.silu(self.ff_proj(normed)) * self.up_proj(normed))


class LLaDA(torch.nn.Module):
    """Blocks of LLaDA (Nie et al. 2025) between its embedding and its last layer."""

    def __init__(self, vocabulary=50, width=32, heads=4, hidden=48, n_blocks=2):
        super().__init__()
        parts = {
            "wte": torch.nn.Embedding(vocabulary, width),
            "blocks": torch.nn.ModuleList([LLaDABlock(width, heads, hidden) for _ in range(n_blocks)]),
            "ln_f": torch.nn.RMSNorm(width), "ff_out": torch.nn.Linear(width, vocabulary, bias=False),
        }  # fmt: skip
        self.model = torch.nn.ModuleDict({"transformer": torch.nn.ModuleDict(parts)})

    def forward(self, tokens):
        parts = self.model["transformer"]
        x = parts["wte"](tokens)
        for block in parts["blocks"]:
            x = block(x)
        return parts["ff_out"](parts["ln_f"](x))


MASK = 4
MODELS = {
    "DiT": dit, "PixArt": pixart, "UNet": unet, "SDXL UNet": sdxl_unet, "SD3": sd3, "Flux": flux, "Wan": wan,
    "StableAudio": stable_audio, "AudioLDM2": audioldm2, "UNet1D": unet1d, "BERT": bert,
}  # fmt: skip


def seeded(name, seed=0):
    """Return a model of `MODELS` and its call, weights and inputs drawn from a seed; no weight stays at zero."""
    torch.manual_seed(seed)
    model, call = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval(), call


def vae():
    return AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(16,), latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), sample_size=8,
    )  # fmt: skip


def dit_pipeline(seed=0):
    model, _ = seeded("DiT", seed)
    return DiTPipeline(model, vae(), DDIMScheduler(), id2label={1: "one", 2: "two"})


def sd_pipeline(seed=0, vocab_size=100):
    """Stable Diffusion without a tokenizer: it is given `prompt_embeds`."""
    model, _ = seeded("UNet", seed)
    config = CLIPTextConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=1, vocab_size=vocab_size,
        max_position_embeddings=8,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae(), CLIPTextModel(config).eval(), None, model, DDIMScheduler(), None, None, requires_safety_checker=False
    )
