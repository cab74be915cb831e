from dataclasses import dataclass

import pytest

from arrowquant_nb.core.modality import class_modality, detect
from arrowquant_nb.errors import ConfigurationError, MetadataError


@dataclass(frozen=True)
class Found:
    model_name: str = "model"
    metadata_modality: str | None = None
    metadata_error: str | None = None
    pipeline_class: str | None = None
    component_class: str | None = None
    architectures: tuple[str, ...] = ()
    model_type: str | None = None
    header_architecture: str | None = None
    tensor_names: tuple[str, ...] = ()
    looked_at: tuple[str, ...] = ("nothing",)


def modality(explicit=None, **found):
    return detect(Found(**found), explicit)[0]


def test_the_order_of_evidence():
    found = {"tensor_names": ("double_blocks.0.img_attn.qkv.weight",)}
    assert modality(**found) == "image"
    found["header_architecture"] = "stable-audio-open"
    assert modality(**found) == "audio"
    found |= {"architectures": ("LLaDAModelLM",), "model_type": "llada"}
    assert modality(**found) == "text"
    found["component_class"] = "FluxTransformer2DModel"
    assert modality(**found) == "image"
    found["pipeline_class"] = "StableAudioPipeline"
    assert modality(**found) == "audio"
    found["metadata_modality"] = "code"
    assert modality(**found) == "code"
    assert modality("image", **found) == "image"


def test_the_pipeline_outranks_a_unet_that_serves_image_and_audio():
    assert modality(component_class="UNet2DConditionModel") == "image"
    assert modality(component_class="UNet2DConditionModel", pipeline_class="AudioLDMPipeline") == "audio"
    with pytest.raises(MetadataError, match="cannot tell"):
        modality(component_class="UNet2DConditionModel", pipeline_class="BrandNewPipeline")
    assert modality(component_class="FluxTransformer2DModel", pipeline_class="BrandNewPipeline") == "image"


@pytest.mark.parametrize(
    ("value", "suggested"),
    [
        (" text ", "text"),
        ("TEXT", "text"),
        ("Image", "image"),
        ("audo", "audio"),
        ('"code"', "code"),
        ("text\n", "text"),
    ],
)
def test_a_near_miss_in_the_metadata_is_an_error_that_suggests_the_spelling(value, suggested):
    with pytest.raises(MetadataError, match=f'write "modality": "{suggested}"'):
        modality(metadata_modality=value, pipeline_class="FluxPipeline")


@pytest.mark.parametrize("value", ["", "video", "5", "null", "x" * 10_000])
def test_an_unknown_metadata_modality_is_an_error(value):
    with pytest.raises(MetadataError, match="exactly one of text, code, image, audio") as caught:
        modality(metadata_modality=value)
    assert len(str(caught.value)) < 400


def test_a_bad_override_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="modality 'video' is unknown; use one of text, code, image, audio"):
        modality("video", metadata_modality="text")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("StableDiffusionXLPipeline", "image"),
        ("StableDiffusion3Pipeline", "image"),
        ("FluxPipeline", "image"),
        ("Flux2Transformer2DModel", "image"),
        ("DiTPipeline", "image"),
        ("DiTTransformer2DModel", "image"),
        ("PixArtAlphaPipeline", "image"),
        ("SanaTransformer2DModel", "image"),
        ("ZImagePipeline", "image"),
        ("IFPipeline", "image"),
        ("WanTransformer3DModel", "video"),
        ("HunyuanVideoPipeline", "video"),
        ("CogVideoXTransformer3DModel", "video"),
        ("SanaVideoPipeline", "video"),
        ("LTXPipeline", "video"),
        ("LTX2Pipeline", "video and audio"),
        ("StableVideoDiffusionPipeline", "video"),
        ("AudioLDM2Pipeline", "audio"),
        ("MusicLDMPipeline", "audio"),
        ("StableAudioDiTModel", "audio"),
        ("StableAudio3Pipeline", "audio"),
        ("DanceDiffusionPipeline", "audio"),
        ("UNet1DModel", "audio"),
        ("AudioLDM2UNet2DConditionModel", "audio"),
        ("LongCatAudioDiTPipeline", "audio"),
        ("LongCatImagePipeline", "image"),
        ("LLaDAModelLM", "text"),
        ("LLaDA2MoeModelLM", "text"),
        ("DreamModel", "text"),
        ("BD3LM", "text"),
        ("SEDD", "text"),
        ("DiffusionGemmaPipeline", "text"),
        ("Fluxional", None),
        ("IFoo", None),
        ("Wander", None),
        ("UNet2DModel", None),
        ("LlamaForCausalLM", None),
        ("", None),
        ("fluxPipeline", None),
    ],
)
def test_class_names_match_by_whole_words(name, expected):
    assert class_modality(name) == expected


def test_video_gets_the_image_strategy_and_says_so():
    assert detect(Found(pipeline_class="WanPipeline"), None) == (
        "image",
        "pipeline class WanPipeline (video; quantized with the image strategy)",
    )


@pytest.mark.parametrize("name", ["Dream-Coder-v0-Instruct-7B", "models--apple--DiffuCoder-7B", "x/dream_coder"])
def test_code_needs_a_name_with_coder(name):
    assert modality(model_name=name, architectures=("DreamModel",)) == "code"


@pytest.mark.parametrize("name", ["Dream-v0-7B", "my-autoencoder", "Decoder-test", "encoders"])
def test_encoders_and_decoders_are_no_coders(name):
    assert modality(model_name=name, architectures=("DreamModel",)) == "text"


def test_a_name_with_coder_does_not_make_an_image_model_write_code():
    assert modality(model_name="coder", pipeline_class="FluxPipeline") == "image"


@pytest.mark.parametrize("model_type", ["llada", "Dream", "diffusion_gemma", "llada2_moe"])
def test_model_types_of_text_diffusion(model_type):
    assert modality(model_type=model_type, architectures=("Whatever",)) == "text"


def test_differential_attention_is_not_diffusion():
    for found in ({"model_type": "diffllama"}, {"model_type": "diffllama", "architectures": ("DiffLlamaForCausalLM",)}):
        with pytest.raises(MetadataError, match="differential attention"):
            modality(**found)
        assert modality("text", **found) == "text"


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "T5ForConditionalGeneration"])
def test_left_to_right_models_are_refused_unless_forced(name):
    with pytest.raises(MetadataError, match="left to right and is not a diffusion model; say modality="):
        modality(architectures=(name,), model_type="llama")
    assert modality("text", architectures=(name,)) == "text"


def test_masked_language_models_are_text():
    assert detect(Found(architectures=("BertForMaskedLM",), model_type="bert"), None) == (
        "text",
        "architecture BertForMaskedLM: a masked language model, which unmasks tokens",
    )


@pytest.mark.parametrize("value", ["stable-diffusion-xl-v1-base", "flux-1-dev", "stable-diffusion-v1"])
def test_header_architectures(value):
    assert modality(header_architecture=value) == "image"


@pytest.mark.parametrize("value", ["stable-diffusion-xl-v1-base/lora", "fluxx", "sdxl", ""])
def test_header_architectures_that_decide_nothing(value):
    with pytest.raises(MetadataError, match="cannot tell"):
        modality(header_architecture=value)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.diffusion_model.label_emb.0.0.weight", "image"),
        ("joint_blocks.0.context_block.attn.qkv.weight", "image"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "image"),
        ("head.modulation", "image"),
        ("patchify_proj.weight", "image"),
        ("net.adaln_single.linear.weight", "image"),
        ("backbone.sigma_map.mlp.0.weight", "text"),
        ("first_stage_model.vocoder.conv_pre.weight", "audio"),
    ],
)
def test_tensor_names_of_single_files(key, expected):
    assert modality(tensor_names=("other", key)) == expected


@pytest.mark.parametrize(
    "key",
    ["xdouble_blocks.0.img_attn.w", "my.label_emb.0.0.weight", "transformer_blocks.0.attn1.to_q.weight", "x" * 10_000],
)
def test_look_alike_tensor_names_decide_nothing(key):
    with pytest.raises(MetadataError, match="cannot tell"):
        modality(tensor_names=(key,))


def test_an_error_lists_what_was_looked_at():
    with pytest.raises(MetadataError, match="looked at: here; there; say modality=text, code, image or audio"):
        modality(looked_at=("here", "there"))
