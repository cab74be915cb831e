"""Class names, model types and tensor names that give a modality away; data for `modality`.

Classes as diffusers 0.42 and the model repositories spell them. An entry covers itself and every name that goes on
with a new CamelCase word.
"""

from typing import Final

AUDIO_CLASSES: Final = (
    "AudioLDM", "AudioLDM2", "MusicLDM", "StableAudio", "StableAudio3", "AceStep", "LongCatAudioDiT", "DanceDiffusion",
    "AudioDiffusion", "SpectrogramDiffusion", "UNet1DModel", "MiniMaxMusic3",
)  # fmt: skip
VIDEO_AND_AUDIO_CLASSES: Final = ("LTX2",)
VIDEO_CLASSES: Final = (
    "Wan", "HunyuanVideo", "HunyuanVideo15", "LTX", "Mochi", "CogVideoX", "ConsisID", "Cosmos", "Cosmos2",
    "Cosmos3", "Allegro", "Latte", "SkyReelsV2", "AnimateDiff", "StableVideoDiffusion",
    "UNetSpatioTemporalConditionModel", "UNetMotionModel", "UNet3DConditionModel", "I2VGenXL", "TextToVideo",
    "VideoToVideo", "SanaVideo", "EasyAnimate", "Kandinsky5T2V", "Kandinsky5I2V",
    "Kandinsky5Transformer3DModel", "ChronoEdit",
)  # fmt: skip
IMAGE_CLASSES: Final = (
    "StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "SD3Transformer2DModel", "LatentConsistency",
    "Flux", "Flux2", "Chroma", "PixArt", "DiT", "DiTTransformer2DModel", "Sana", "AuraFlow", "HunyuanDiT",
    "HunyuanDiT2DModel", "HunyuanImage", "Lumina", "Lumina2", "LuminaNextDiT2DModel", "QwenImage", "ZImage",
    "HiDream", "Kolors", "Kandinsky", "Kandinsky3", "Kandinsky5", "KandinskyV22", "Bria", "Krea2", "OmniGen",
    "CogView", "CogView3", "CogView4", "StableCascade", "Wuerstchen", "GlmImage", "ErnieImage", "OvisImage",
    "LongCatImage", "Ideogram4", "IF", "PriorTransformer", "PRX", "UVit2DModel", "AltDiffusion",
    "SemanticStableDiffusion", "NucleusMoEImage", "JoyImageEdit", "Amused", "LDM", "DDPM", "DDIM",
    "LDMTextToImage", "UnCLIP", "PaintByExample",
)  # fmt: skip
TEXT_CLASSES: Final = (
    "LLaDA", "LLaDA2", "DreamModel", "DiffusionGemma", "MDLM", "SEDD", "BD3LM", "RND1",
)  # fmt: skip
TEXT_MODEL_TYPES: Final = (
    "llada", "llada_moe", "llada2", "llada2_moe", "Dream", "dream", "diffusion_gemma", "mdlm", "sedd", "bd3lm", "rnd1",
)  # fmt: skip
# Serve images in Stable Diffusion and sound in AudioLDM: the pipeline decides; alone they are taken for images.
AMBIGUOUS_CLASSES: Final = ("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL")
NOT_DIFFUSION: Final = {"diffllama": "the name stands for differential attention"}
HEADER_ARCHITECTURES: Final = (
    ("image", ("stable-diffusion", "flux", "flux-1", "flux-2", "pixart", "sana", "auraflow", "chroma", "lumina")),
    ("image", ("hunyuan-dit", "qwen-image", "z-image", "kandinsky")),
    ("image", ("stable-video-diffusion", "hunyuan-video", "wan", "wan2.1", "wan2.2", "ltx-video", "mochi", "cosmos")),
    ("audio", ("stable-audio", "ace-step")),
)  # fmt: skip
# (modality, family, pattern from the start of a name without wrapper prefixes); the first family that matches wins.
TENSOR_KEYS: Final = (
    ("audio", "AudioLDM's single files", r"first_stage_model\.vocoder\."),
    ("image", "LTX-Video's (video; quantized with the image strategy)", r"patchify_proj\.weight$"),
    ("image", "Wan's (video; quantized with the image strategy)", r"head\.modulation$"),
    ("image", "Hunyuan Video's (video; quantized with the image strategy)", r"txt_in\.individual_token_refiner\."),
    ("image", "Stable Diffusion's UNet", r"input_blocks\.3\.0\.op\.weight$"),
    ("image", "Stable Diffusion XL's UNet", r"label_emb\.0\.0\.weight$"),
    ("image", "Stable Diffusion 3's", r"joint_blocks\.0\.context_block\."),
    ("image", "FLUX.2's", r"single_stream_modulation\.lin\.weight$"),
    ("image", "Chroma's", r"distilled_guidance_layer\."),
    ("image", "FLUX.1's", r"double_blocks\.0\.img_attn\."),
    ("image", "AuraFlow's", r"double_layers\.0\.attn\.w1q\.weight$"),
    ("image", "PixArt's", r"adaln_single\.linear\.weight$"),
    ("image", "Z-Image's", r"layers\.0\.adaLN_modulation\.0\.weight$"),
    ("image", "Lumina 2's", r"cap_embedder\.0\.weight$"),
    ("text", "a masked or score-entropy diffusion language model's", r"sigma_map\.mlp\.0\.weight$"),
)
