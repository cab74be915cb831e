"""Where each architecture lets equalization be folded: facts read from the forward passes of its class.

What is not listed is left to be stored, and so is what cannot be folded exactly: what stands behind a GELU or a SiLU
(unless it is the other factor of a gate), behind a norm that feeds the residual too (BERT), behind a modulation that
all blocks share (PixArt, Sana, Wan, LTX, FLUX.2), behind one without a bias (FLUX.2's last layer), values that several
heads share (Qwen2, Stable Audio's cross-attention), and what is joined with such a thing (the last layer of FLUX's
single blocks).
"""

from __future__ import annotations

from typing import Final

from arrowquant_nb.quantizers.input_sources import Modulation, ParallelBranches, Place, Proportional

__all__ = ["ARCHITECTURES"]

Blocks = tuple[tuple[str, tuple[Place, ...]], ...]


def _modulated(
    module: str, shift: int, scale: int, parts: int, *readers: str, beside: str = "", without: str = ""
) -> Place:
    return Place((Modulation(module, shift, scale, parts),), (readers,), beside, without)


def _after(module: str, *readers: str, part: int = 0, parts: int = 1) -> Place:
    return Place((Proportional(module, part, parts),), (readers,))


def _two_streams(module: str) -> tuple[Modulation, ...]:
    return Modulation(module, 0, 1, 6), Modulation(module, 3, 4, 6)


_SELF: Final = ("{}.attn1.to_q", "{}.attn1.to_k", "{}.attn1.to_v")
# Attention mixes tokens, not channels: what leaves it is proportional to the values.
_SELF_OUT: Final = _after("{}.attn1.to_v", "{}.attn1.to_out.0")
_CROSS_OUT: Final = _after("{}.attn2.to_v", "{}.attn2.to_out.0")
_ATTENTIONS_OUT: Final = (r"transformer_blocks\.\d+", (_SELF_OUT, _CROSS_OUT))
# `hidden * act(gate)`, both halves of one layer's outputs.
_GATED: Final = _after("{}.ff.net.0.proj", "{}.ff.net.2", part=0, parts=2)

# Joint attention of two streams: each has its own projections, and every token's output mixes the values of both.
_JOINT: Final = ("{}.attn.to_q", "{}.attn.to_k", "{}.attn.to_v")
_ADDED: Final = ("{}.attn.add_q_proj", "{}.attn.add_k_proj", "{}.attn.add_v_proj")
_JOINT_VALUES: Final = (Proportional("{}.attn.to_v"), Proportional("{}.attn.add_v_proj"))
_ADDED_OUT: Final = "{}.attn.to_add_out"
_JOINT_OUT: Final = Place(_JOINT_VALUES, (("{}.attn.to_out.0",), (_ADDED_OUT,)))
_SECOND: Final = "{}.attn2.to_q"
# AdaLayerNormContinuous before the last layer: scale first.
_LAST: Final = (r"", (_modulated("norm_out.linear", 1, 0, 2, "proj_out"),))
# FLUX and the Hunyuan models.
_TWO_STREAM_BLOCKS: Final = (
    r"transformer_blocks\.\d+",
    (
        _modulated("{}.norm1.linear", 0, 1, 6, *_JOINT),
        _modulated("{}.norm1_context.linear", 0, 1, 6, *_ADDED),
        _JOINT_OUT,
        _modulated("{}.norm1.linear", 3, 4, 6, "{}.ff.net.0.proj"),
        _modulated("{}.norm1_context.linear", 3, 4, 6, "{}.ff_context.net.0.proj"),
    ),
)
_SINGLE_BLOCKS: Final = (
    r"single_transformer_blocks\.\d+", (_modulated("{}.norm.linear", 0, 1, 3, *_JOINT, "{}.proj_mlp"),)
)  # fmt: skip
# The Hunyuan models' blocks over the text alone.
_REFINER_BLOCKS: Final = (
    r"context_embedder\.token_refiner\.refiner_blocks\.\d+",
    (
        _after("{}.norm1", *_JOINT),
        _after("{}.attn.to_v", "{}.attn.to_out.0"),
        _after("{}.norm2", "{}.ff.net.0.proj"),
    ),
)

# Transformer2DModel in a U-Net: BasicTransformerBlock with affine norms, behind a GroupNorm and `proj_in`.
_UNET: Final = r"(?:\w+_blocks\.\d+|mid_block)\.attentions\.\d+"
_UNET_BLOCKS: Final = rf"{_UNET}\.transformer_blocks\.\d+"
_UNET_IN: Final = (_UNET, (_after("{}.norm", "{}.proj_in"),))
_AFFINE: Final = (_after("{}.norm1", *_SELF), _SELF_OUT, _CROSS_OUT, _after("{}.norm3", "{}.ff.net.0.proj"), _GATED)
_CROSS: Final = _after("{}.norm2", "{}.attn2.to_q")

# Class -> (pattern of a block's prefix, places in it). Sources: the forward passes of diffusers 0.42, of transformers'
# BertForMaskedLM, of Dream, which computes what Qwen2 does, and of LLaDA 8B, where every head has values of its own.
ARCHITECTURES: Final[dict[str, Blocks]] = {
    "DiTTransformer2DModel": (  # BasicTransformerBlock with ada_norm_zero
        (
            r"transformer_blocks\.\d+",
            (
                _modulated("{}.norm1.linear", 0, 1, 6, *_SELF),
                _SELF_OUT,
                _modulated("{}.norm1.linear", 3, 4, 6, "{}.ff.net.0.proj"),
            ),
        ),
        (r"", (_modulated("proj_out_1", 0, 1, 2, "proj_out_2"),)),
    ),
    "PixArtTransformer2DModel": (_ATTENTIONS_OUT,),
    "LTXVideoTransformer3DModel": (_ATTENTIONS_OUT,),
    "LTX2VideoTransformer3DModel": (
        (  # video and audio look at themselves, at the text and at each other
            r"transformer_blocks\.\d+\.(?:(?:audio_)?attn[12]|(?:audio_to_video|video_to_audio)_attn)",
            (_after("{}.to_v", "{}.to_out.0"),),
        ),
    ),
    "SanaTransformer2DModel": (
        (
            r"transformer_blocks\.\d+",
            (_SELF_OUT, _CROSS_OUT, _after("{}.ff.conv_depth", "{}.ff.conv_point", part=0, parts=2)),
        ),
    ),
    "CogVideoXTransformer3DModel": (  # text and video are modulated apart, then read together
        (
            r"transformer_blocks\.\d+",
            (
                Place(_two_streams("{}.norm1.linear"), (_SELF,)),
                _SELF_OUT,
                Place(_two_streams("{}.norm2.linear"), (("{}.ff.net.0.proj",),)),
            ),
        ),
    ),
    "UNet2DConditionModel": (_UNET_IN, (_UNET_BLOCKS, (*_AFFINE, _CROSS))),
    # Some of its blocks attend to themselves twice, under the same names.
    "AudioLDM2UNet2DConditionModel": (_UNET_IN, (_UNET_BLOCKS, _AFFINE)),
    "StableAudioDiTModel": (
        (
            r"transformer_blocks\.\d+",
            (_after("{}.norm1", *_SELF), _SELF_OUT, _CROSS, _after("{}.norm3", "{}.ff.net.0.proj"), _GATED),
        ),
    ),
    "WanTransformer3DModel": (
        (
            r"blocks\.\d+",
            (
                _SELF_OUT,
                _CROSS,
                Place(_CROSS_OUT.sources, _CROSS_OUT.readers, without="{}.attn2.add_v_proj"),
                # Image to video: what the text and the image say is added up.
                Place((*_CROSS_OUT.sources, Proportional("{}.attn2.add_v_proj")), _CROSS_OUT.readers),
            ),
        ),
    ),
    "FluxTransformer2DModel": (_TWO_STREAM_BLOCKS, _SINGLE_BLOCKS, _LAST),
    "HunyuanVideoTransformer3DModel": (_TWO_STREAM_BLOCKS, _SINGLE_BLOCKS, _REFINER_BLOCKS, _LAST),
    "HunyuanVideo15Transformer3DModel": (_TWO_STREAM_BLOCKS, _REFINER_BLOCKS, _LAST),
    "HunyuanImageTransformer2DModel": (_TWO_STREAM_BLOCKS, _SINGLE_BLOCKS, _REFINER_BLOCKS, _LAST),
    "Flux2Transformer2DModel": (
        (
            r"transformer_blocks\.\d+",
            (
                _JOINT_OUT,
                _after("{}.ff.linear_in", "{}.ff.linear_out", part=1, parts=2),
                _after("{}.ff_context.linear_in", "{}.ff_context.linear_out", part=1, parts=2),
            ),
        ),
        (
            r"single_transformer_blocks\.\d+",
            (Place((ParallelBranches("{}.attn.to_qkv_mlp_proj"),), (("{}.attn.to_out",),)),),
        ),
    ),
    "ChromaTransformer2DModel": ((r"transformer_blocks\.\d+", (_JOINT_OUT,)),),
    "QwenImageTransformer2DModel": (
        (
            r"transformer_blocks\.\d+",
            (
                _modulated("{}.img_mod.1", 0, 1, 6, *_JOINT),
                _modulated("{}.txt_mod.1", 0, 1, 6, *_ADDED),
                _JOINT_OUT,
                _modulated("{}.img_mod.1", 3, 4, 6, "{}.img_mlp.net.0.proj"),
                _modulated("{}.txt_mod.1", 3, 4, 6, "{}.txt_mlp.net.0.proj"),
            ),
        ),
        _LAST,
    ),
    "SD3Transformer2DModel": (
        (
            r"transformer_blocks\.\d+",
            (
                _modulated("{}.norm1.linear", 0, 1, 6, *_JOINT, without=_SECOND),
                _modulated("{}.norm1.linear", 3, 4, 6, "{}.ff.net.0.proj", without=_SECOND),
                # 3.5 has blocks with a second attention, of the image alone.
                _modulated("{}.norm1.linear", 0, 1, 9, *_JOINT, beside=_SECOND),
                _modulated("{}.norm1.linear", 3, 4, 9, "{}.ff.net.0.proj", beside=_SECOND),
                _modulated("{}.norm1.linear", 6, 7, 9, _SECOND, "{}.attn2.to_k", "{}.attn2.to_v"),
                _CROSS_OUT,
                _modulated("{}.norm1_context.linear", 0, 1, 6, *_ADDED, beside=_ADDED_OUT),
                _modulated("{}.norm1_context.linear", 3, 4, 6, "{}.ff_context.net.0.proj"),
                _JOINT_OUT,
                # The last block drops the text after its attention.
                _modulated("{}.norm1_context.linear", 1, 0, 2, *_ADDED, without=_ADDED_OUT),
                Place(_JOINT_VALUES, (("{}.attn.to_out.0",),), without=_ADDED_OUT),
            ),
        ),
        _LAST,
    ),
    "BertForMaskedLM": (
        (r"bert\.encoder\.layer\.\d+", (_after("{}.attention.self.value", "{}.attention.output.dense"),)),
    ),
    "DreamModel": (
        (
            r"model\.layers\.\d+",
            (
                _after("{}.input_layernorm", "{}.self_attn.q_proj", "{}.self_attn.k_proj", "{}.self_attn.v_proj"),
                _after("{}.post_attention_layernorm", "{}.mlp.gate_proj", "{}.mlp.up_proj"),
                _after("{}.mlp.up_proj", "{}.mlp.down_proj"),
            ),
        ),
    ),
    "LLaDAModelLM": (
        (
            r"model\.transformer\.blocks\.\d+",
            (
                _after("{}.attn_norm", "{}.q_proj", "{}.k_proj", "{}.v_proj"),
                _after("{}.v_proj", "{}.attn_out"),
                _after("{}.ff_norm", "{}.ff_proj", "{}.up_proj"),
                _after("{}.up_proj", "{}.ff_out"),
            ),
        ),
    ),
}
