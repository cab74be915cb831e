"""Which weights are special, per family of model classes; data for `policy`.

A rule is a pattern that must match a whole tensor name (after wrapper prefixes such as
`model.diffusion_model.` are taken off) and the role of the weights it names. Segments are spelled out and
anchored; nothing matches by accident inside another word. The first rule that matches wins; a weight that no
rule names is an ordinary linear or convolution.

Sources: `_skip_layerwise_casting_patterns` of diffusers 0.42, the keep lists of stable-diffusion.cpp,
ComfyUI-GGUF, NVIDIA Model Optimizer and SDNQ, and the parameter names of every class in diffusers 0.42.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """Names of weights, and what they are."""

    pattern: re.Pattern[str]
    role: str


@dataclass(frozen=True, slots=True)
class Role:
    """How weights of a role are stored."""

    least_bit_width: int
    """0: the target; 4 or 8: at least that; 16: kept as they are."""
    reason: str


ROLES = {
    "linear": Role(0, "A linear layer inside the model takes the requested bit width."),
    "convolution": Role(4, "A convolution loses too much below 4 bits."),
    "modulation": Role(8, "A modulation layer steers every channel of its block, so it stays at 8 bits or more."),
    "vocabulary": Role(8, "Token embedding and output head touch every token, so they stay at 8 bits or more."),
    "embedder": Role(16, "Time, condition and patch embedders are small and feed every layer."),
    "first or last layer": Role(16, "The first and the last layer see the data directly and are small."),
    "shortcut": Role(16, "A shortcut convolution carries the signal past its block."),
    "router": Role(16, "A router chooses experts; a small error changes the choice."),
    "other part": Role(16, "This part of the file is not the denoiser (VAE, text encoder or a second copy)."),
    "table": Role(16, "A table is looked up, not multiplied with activations."),
    "norm or bias": Role(16, "Tiny and sensitive."),
    "not a weight": Role(16, "Not the weight of a linear or convolution layer."),
    "small": Role(16, "Fewer than 16,384 elements: quantizing it saves next to nothing."),
    "short rows": Role(16, "Its rows are shorter than the smallest group of 32, so scales would outweigh the codes."),
}


def _rules(role: str, *patterns: str) -> tuple[Rule, ...]:
    return tuple(Rule(re.compile(pattern, re.DOTALL), role) for pattern in patterns)


WRAPPERS = re.compile(r"^(?:(?:model|diffusion_model|net|_orig_mod|module|backbone)\.)+")
# Blocks that sit inside an embedder (token refiners) are blocks like all others.
_NOT_IN_BLOCKS = r"(?!.*\.(?:blocks|refiner_blocks|layers)\.\d)"

# Names at the top level of diffusers transformers and of the original single files of the same models.
_TRANSFORMER = (
    *_rules("vocabulary", r"embed_tokens\.weight", r"lm_head\.weight"),
    *_rules("modulation",
        r"(?:audio_)?(?:time_embed|adaln_single|adaLN_single|prompt_adaln)\.linear\.weight",
        r"av_cross_attn_\w+\.linear\.weight",
        r"condition_embedder\.time_proj\.weight",
        r"time_embed(?:_r)?\.time_proj\.weight",
        r"(?:time_projection\.\d|time_mod_proj)\.weight",
        r"t_block\.1\.weight",
        r"(?:double|single|early)_stream_modulations?(?:_img|_txt)?(?:\.\w+)?\.lin(?:ear)?\.weight",
        r"(?:adaLN_modulation|modulation)\.\d\.weight",
        r"adaln_global_mlp\.mlp\.\d\.weight",
        r"distilled_guidance_layer\.layers\.\d+\..+\.weight",
        r".+\.refiner_blocks\.\d+\.norm_out\.linear\.weight",
    ),
    *_rules("embedder",
        _NOT_IN_BLOCKS + r"(?:audio_|video_|all_)?(?:x|y|t|c|cap|context|text|time|timestep|guidance|condition|"
        r"pooled_text|class|label|size|csize|ar|plucker|raymap|cond|global_cond|latent_cond|p|delta|image|token_type|pos|r)_embedders?(?:_\d)?\."
        r"(?:.+\.)?weight",
        _NOT_IN_BLOCKS + r"(?:audio_)?(?:time_text_embed|time_embed|time_embed_r|time_embedding|t_embedding|"
        r"(?:audio_|video_)?(?:pooled_)?(?:time|text|visual)_embeddings|time_caption_embed|"
        r"time_condition_embed|time_guidance_embed|time_extra_emb|timestep_proj|time_step_proj|global_proj|"
        r"cross_attention_proj|time_in|vector_in|guidance_in|txt_in|text_embedding|img_emb|caption_projection|"
        r"to_timestep_embed|to_cond_embed|to_global_embed|text_proj|embedding_proj|encoder_hidden_states_proj|"
        r"encoder_hid_proj|add_embedding|label_emb|class_embedding|cond_seq_linear|latent_embed|clip_txt_pooled_mapper|"
        r"clip_txt_mapper|clip_img_mapper|clip_mapper|effnet_mapper|pixels_mapper|distilled_guidance_layer|text_fusion|"
        r"image_projector|prior_projector|glyph_projector|prior_token_embedding|adaln_single\.emb|adaLN_single\.emb|"
        r"prompt_adaln\.emb|av_cross_attn_\w+\.emb|image_proj|input_proj|llm_cond_proj|input_embed|text_embed|sigma_map)\."
        r"(?:.+\.)?weight",
        r"(?:.+\.)?norm\d?\.emb\.(?:.+\.)?weight",
        r"(?:.+\.)?time_embedder\.(?:.+\.)?weight",
    ),
    *_rules("first or last layer",
        r"(?:audio_|all_|far_|pose_|vace_)?(?:patch_embed|patch_embedding|patchify_proj|pos_embed|img_in|proj_in|proj_in_conv|preprocess_conv|"
        r"init_x_linear|patch_short|patch_mid|patch_long|conv_in|transformer_in)\.(?:.+\.)?weight",
        r"(?:audio_|all_)?(?:proj_out|proj_out_[12]|proj_out_conv|norm_out|final_layer|final_linear|final_norm|out_layer|"
        r"postprocess_conv|proj_to_clip_embeddings|modF|conv_out|conv_norm_out)\.(?:.+\.)?weight",
        r"head(?:\.head)?\.weight",
        r"embedding\.\d\.weight", r"clf\.\d\.weight",
    ),
    *_rules("modulation",
        r"(?:.+\.)?norm\d?(?:_context)?\.linear(?:_[12])?\.weight",
        r"(?:.+\.)?(?:img_mod|txt_mod|vid_mod|modX|modC|modCX|modulation)(?:\.\d|\.lin|\.linear|\.lin_\d)?\.weight",
        r"(?:.+\.)?(?:adaln_proj|adaln_mlp|adaln|\w+_modulation)(?:\.\w+)?(?:\.\d)?\.weight",
        r"(?:.+\.)?adaln_modulation_\w+\.\d\.weight",
    ),
)  # fmt: skip
# U-Nets, with diffusers names and with the original ones (input_blocks, middle_block, output_blocks).
_UNET = (
    *_rules("first or last layer",
        r"conv_in\.weight", r"conv_out\.weight", r"input_blocks\.0\.0\.weight", r"out\.2\.weight",
        r"transformer_in\.proj_(?:in|out)\.weight", r"(?:in|out)_proj\.weight",
    ),
    *_rules("embedder",
        r"(?:time_embed|time_embedding|add_embedding|label_emb|class_embedding|encoder_hid_proj|add_time_condition|"
        r"fps_embedding|image_latents_proj_in|context_embedding|image_latents_context_embedding|time_mlp)\.(?:.+\.)?weight",
    ),
    *_rules("modulation",
        r"(?:.+\.)?time_emb_proj\.weight", r"(?:.+\.)?time_pos_embed\.linear_[12]\.weight",
        r"(?:.+\.)?\w*norm\.context_mlp\.\d\.weight",
        r"(?:input_blocks\.\d+|middle_block|output_blocks\.\d+)\.\d\.emb_layers\.1\.weight",
    ),
    *_rules("shortcut",
        r"(?:.+\.)?resnets\.\d+(?:\.\w+)*\.(?:conv_shortcut|conv_skip)\.weight",
        r"(?:input_blocks\.\d+|middle_block|output_blocks\.\d+)\.\d\.skip_connection\.weight",
    ),
)  # fmt: skip
_LANGUAGE = (
    *_rules("vocabulary",
        r"(?:\w+\.)*(?:embed_tokens|wte|word_embeddings|tok_embeddings|token_embedding|shared)\.weight",
        r"vocab_embed\.embedding",
        r"(?:transformer\.)?ff_out\.weight", r"lm_head(?:\.decoder)?\.weight", r"cls\.predictions\.decoder\.weight",
        r"decoder\.weight", r"output_layer\.linear\.weight", r"embed_out\.weight", r"output\.weight",
        r"vocab_projector\.weight",
    ),
    *_rules("table",
        r"(?:.+\.)?(?:position_embeddings?|token_type_embeddings|wpe|relative_attention_bias|embed_positions)\.weight",
    ),
    *_rules("router",
        r"(?:.+\.)?(?:mlp|ffn|block_sparse_moe|moe|feed_forward|img_mlp|txt_mlp)\.(?:gate|router|shared_expert_gate)\.weight",
        r"(?:.+\.)?router\.(?:.+\.)?weight",
    ),
    *_rules("embedder", r"sigma_map\.mlp\.\d\.weight"),
    *_rules("modulation", r"(?:.+\.)?adaLN_modulation(?:\.\d)?\.weight"),
)  # fmt: skip
# Parts of single-file checkpoints that are not the denoiser; matched before wrapper prefixes are taken off.
OTHER_PARTS = re.compile(
    r"(?:first_stage_model|vae|cond_stage_model|conditioner|text_encoders?|text_encoder_\d|model_ema|control_model)\..+"
)

# Class name (or its first CamelCase words) -> family. Longer entries are tried first.
_UNET_CLASSES = (
    "UNet", "AudioLDM2UNet2DConditionModel", "Kandinsky3UNet", "I2VGenXLUNet", "DreamLiteUNetModel",
    "UNet2DConditionModel", "UNet2DModel", "UNet1DModel", "UNet3DConditionModel", "UNetMotionModel",
    "UNetSpatioTemporalConditionModel",
)  # fmt: skip
_TRANSFORMER_CLASSES = (
    "Flux", "Flux2", "Flux3", "SD3Transformer2DModel", "PixArt", "DiTTransformer2DModel", "Sana", "SanaVideo",
    "CogVideoX", "CogView3", "CogView4", "Wan", "SkyReelsV2", "StableAudioDiTModel", "StableAudio3DiTModel",
    "HunyuanDiT2DModel", "HunyuanVideo", "HunyuanImage", "Lumina2", "LuminaNextDiT2DModel", "ZImage",
    "QwenImage", "Chroma", "AuraFlow", "Mochi", "LTX", "LTX2", "Allegro", "Latte", "Cosmos", "PriorTransformer",
    "Bria", "OmniGen", "HiDream", "Kandinsky5", "ErnieImage", "OvisImage", "LongCatImage", "LongCatAudioDiT",
    "AceStep", "ConsisID", "EasyAnimate", "Krea2", "GlmImage", "PRX",
)  # fmt: skip
_LANGUAGE_CLASSES = ("LLaDA", "LLaDA2", "DreamModel", "DiffusionGemma", "MDLM", "SEDD", "BD3LM", "RND1")
_LANGUAGE_ENDINGS = (
    "ForMaskedLM",
    "ForCausalLM",
    "LMHeadModel",
    "TextModel",
    "TextModelWithProjection",
    "EncoderModel",
)

FAMILIES: dict[str, tuple[Rule, ...]] = {
    "U-Net": _UNET,
    "diffusion transformer": _TRANSFORMER,
    "language model": _LANGUAGE,
    "any model": (*_UNET, *_TRANSFORMER, *_LANGUAGE),
}


def family_of(class_name: str | None) -> str:
    """Return the family whose rules hold for a class; `any model` (all rules) when the class is not in the table.

    >>> family_of("UNet2DConditionModel"), family_of("LLaDAModelLM"), family_of("SomethingNew")
    ('U-Net', 'language model', 'any model')
    """
    if class_name is None:
        return "any model"
    if class_name.endswith(_LANGUAGE_ENDINGS):
        return "language model"
    for family, classes in (
        ("U-Net", _UNET_CLASSES),
        ("language model", _LANGUAGE_CLASSES),
        ("diffusion transformer", _TRANSFORMER_CLASSES),
    ):
        for entry in classes:
            if class_name.startswith(entry) and not class_name[len(entry) : len(entry) + 1].islower():
                return family
    return "any model"
