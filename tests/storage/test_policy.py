import time
from pathlib import Path

import pytest

from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import CheckpointError, ConfigurationError
from arrowquant_nb.storage.policy import assign_bit_widths
from arrowquant_nb.storage.safetensors_file import TensorEntry


def entry(name, *shape, dtype="bfloat16"):
    return TensorEntry(name, shape or (256, 256), dtype, Path("model.safetensors"), 0, 0)


def assign(names, class_name=None, modality="image", **settings):
    entries = [e if isinstance(e, TensorEntry) else entry(e) for e in names]
    return {a.name: a for a in assign_bit_widths(entries, class_name, modality, DiffusionQuantConfig(**settings))}


def widths(names, class_name=None, modality="image", bit_width=4, **settings):
    found = assign(names, class_name, modality, bit_width=bit_width, **settings)
    return [found[name if isinstance(name, str) else name.name].bit_width for name in names]


# Name -> role, as each class really names its weights. T target, M at least 8, V at least 8, K keep.
EXPECTED = {
    "DiTTransformer2DModel": {
        "transformer_blocks.0.attn1.to_q.weight": "linear",
        "transformer_blocks.0.attn1.to_out.0.weight": "linear",
        "transformer_blocks.0.ff.net.0.proj.weight": "linear",
        "transformer_blocks.0.ff.net.2.weight": "linear",
        "transformer_blocks.0.norm1.linear.weight": "modulation",
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight": "embedder",
        "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight": "embedder",
        "pos_embed.proj.weight": "first or last layer",
        "proj_out_1.weight": "first or last layer",
        "proj_out_2.weight": "first or last layer",
    },
    "FluxTransformer2DModel": {
        "transformer_blocks.0.norm1.linear.weight": "modulation",
        "transformer_blocks.0.norm1_context.linear.weight": "modulation",
        "single_transformer_blocks.0.norm.linear.weight": "modulation",
        "single_transformer_blocks.0.proj_out.weight": "linear",
        "single_transformer_blocks.0.proj_mlp.weight": "linear",
        "proj_out.weight": "first or last layer",
        "norm_out.linear.weight": "first or last layer",
        "x_embedder.weight": "embedder",
        "time_text_embed.guidance_embedder.linear_1.weight": "embedder",
    },
    "UNet2DConditionModel": {
        "conv_in.weight": "first or last layer",
        "conv_out.weight": "first or last layer",
        "time_embedding.linear_1.weight": "embedder",
        "add_embedding.linear_2.weight": "embedder",
        "down_blocks.1.resnets.0.time_emb_proj.weight": "modulation",
        "down_blocks.1.resnets.0.conv_shortcut.weight": "shortcut",
        "down_blocks.1.attentions.0.proj_in.weight": "linear",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": "linear",
    },
    "WanTransformer3DModel": {
        "patch_embedding.weight": "first or last layer",
        "condition_embedder.time_embedder.linear_1.weight": "embedder",
        "condition_embedder.time_proj.weight": "modulation",
        "blocks.0.attn1.to_q.weight": "linear",
        "proj_out.weight": "first or last layer",
    },
    "PixArtTransformer2DModel": {
        "adaln_single.linear.weight": "modulation",
        "adaln_single.emb.timestep_embedder.linear_1.weight": "embedder",
        "caption_projection.linear_1.weight": "embedder",
    },
    "StableAudioDiTModel": {
        "timestep_proj.0.weight": "embedder",
        "proj_in.weight": "first or last layer",
        "transformer_blocks.0.ff.net.0.proj.weight": "linear",
    },
    "HunyuanVideoTransformer3DModel": {
        "context_embedder.proj_in.weight": "embedder",
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight": "linear",
        "context_embedder.token_refiner.refiner_blocks.0.norm_out.linear.weight": "modulation",
    },
    "ZImageTransformer2DModel": {
        "all_x_embedder.2-1.weight": "embedder",
        "all_final_layer.2-1.linear.weight": "first or last layer",
        "layers.0.adaLN_modulation.0.weight": "modulation",
        "layers.0.feed_forward.w1.weight": "linear",
    },
    "LLaDAModelLM": {
        "model.transformer.wte.weight": "vocabulary",
        "model.transformer.ff_out.weight": "vocabulary",
        "model.transformer.blocks.0.ff_out.weight": "linear",
        "model.transformer.blocks.0.q_proj.weight": "linear",
    },
    "LLaDA2MoeModelLM": {
        "model.word_embeddings.weight": "vocabulary",
        "lm_head.weight": "vocabulary",
        "model.layers.1.mlp.gate.weight": "router",
        "model.layers.1.mlp.experts.3.gate_proj.weight": "linear",
    },
    "DreamModel": {
        "model.embed_tokens.weight": "vocabulary",
        "lm_head.weight": "vocabulary",
        "model.layers.0.mlp.gate_proj.weight": "linear",
    },
    "BertForMaskedLM": {
        "bert.embeddings.word_embeddings.weight": "vocabulary",
        "bert.embeddings.position_embeddings.weight": "table",
        "bert.encoder.layer.0.attention.self.query.weight": "linear",
        "cls.predictions.decoder.weight": "vocabulary",
    },
    None: {
        "model.diffusion_model.input_blocks.0.0.weight": "first or last layer",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": "linear",
        "model.diffusion_model.output_blocks.4.1.proj_out.weight": "linear",
        "model.diffusion_model.input_blocks.4.0.emb_layers.1.weight": "modulation",
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight": "shortcut",
        "model.diffusion_model.time_embed.0.weight": "embedder",
        "model.diffusion_model.label_emb.0.0.weight": "embedder",
        "model.diffusion_model.out.2.weight": "first or last layer",
        "first_stage_model.decoder.conv_in.weight": "other part",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": "other part",
        "double_blocks.0.img_attn.qkv.weight": "linear",
        "double_blocks.0.img_mod.lin.weight": "modulation",
        "single_blocks.0.modulation.lin.weight": "modulation",
        "final_layer.adaLN_modulation.1.weight": "first or last layer",
        "final_layer.linear.weight": "first or last layer",
        "guidance_in.in_layer.weight": "embedder",
        "txt_in.weight": "embedder",
        "img_in.weight": "first or last layer",
        "model.diffusion_model.joint_blocks.0.x_block.adaLN_modulation.1.weight": "modulation",
        "model.diffusion_model.head.head.weight": "first or last layer",
        "backbone.vocab_embed.embedding": "vocabulary",
    },
}
PRECISION = {"linear": (2, 4, 8), "modulation": (8, 8, 8), "vocabulary": (8, 8, 8)}


@pytest.mark.parametrize("class_name", EXPECTED)
def test_roles_by_class(class_name):
    expected = EXPECTED[class_name]
    modality = "text" if class_name and class_name.endswith("LM") else "image"
    for target, column in ((2, 0), (4, 1), (8, 2)):
        found = assign(expected, class_name, modality, bit_width=target)
        assert {name: a.role for name, a in found.items()} == expected
        for assignment in found.values():
            assert assignment.bit_width == PRECISION.get(assignment.role, (16, 16, 16))[column]
            assert assignment.rule == ("bit_width" if assignment.bit_width == target else "class policy")
            assert assignment.reason.endswith(".")
            assert assignment.reason.count(". ") == 0


def test_convolutions_do_not_go_below_4_bits():
    conv = [
        entry("mid_block.resnets.0.conv1.weight", 64, 64, 3, 3),
        entry("down_blocks.0.resnets.0.conv_1.weight", 128, 64, 5),
    ]
    assert [widths(conv, "UNet2DModel", bit_width=b) for b in (2, 4, 8)] == [[4, 4], [4, 4], [8, 8]]
    assert "below 4 bits" in assign(conv, "UNet2DModel", bit_width=2)[conv[0].name].reason


def test_what_is_no_weight_is_kept():
    tensors = [
        entry("blocks.0.norm.weight", 4096),
        entry("blocks.0.attn.to_q.bias", 4096),
        entry("scale_shift_table", 2, 65536),
        entry("pos", 1, 256, 256),
        entry("position_ids", 1, 77, dtype="int64"),
        entry("scalar"),
        entry("empty.weight", 0, 4096),
        entry("a.running_var", 512, 512),
    ]
    tensors[5] = TensorEntry("scalar", (), "float32", Path("m"), 0, 4)
    assert set(widths(tensors, "PixArtTransformer2DModel")) == {16}
    assert {a.rule for a in assign(tensors, "PixArtTransformer2DModel").values()} == {"not a weight"}


def test_small_weights_and_short_rows_are_kept():
    tensors = [
        entry("a.weight", 128, 127),
        entry("b.weight", 128, 128),
        entry("ff.conv_depth.weight", 11200, 1, 3, 3),
        entry("c.weight", 1024, 32),
    ]
    assert widths(tensors) == [16, 4, 16, 4]
    assert [a.role for a in assign(tensors).values()] == ["small", "linear", "short rows", "linear"]


@pytest.mark.parametrize(
    "name",
    [
        "my_conv_in.extra.weight",
        "blocks.0.proj_out.weight",
        "preconv_in.weight",
        "blocks.0.norm_outer.weight",
        "blocks.0.embedder_like.weight",
        "blocks.0.mlp.gate_proj.weight",
        "first_stage_models.x.weight",
    ],
)
def test_look_alike_names_are_ordinary_layers(name):
    assert widths([name]) == [4]


def test_other_parts_are_recognised_in_single_files_only():
    assert widths(["vae.encoder.layer.weight"], None) == [16]
    assert widths(["vae.encoder.layer.weight"], "SomeClass") == [4]


def test_fused_experts_are_weights():
    fused = [
        entry("transformer_blocks.0.img_mlp.experts.gate_up_proj", 8, 256, 512),
        entry("blocks.0.gate_up_proj", 8, 256, 512),
    ]
    assert widths(fused, "NucleusMoEImageTransformer2DModel", bit_width=2) == [2, 16]


# ---------------------------------------------------------------------------------------------------- the user's rules

LAYERS = [
    "blocks.0.attn.to_q.weight",
    "blocks.0.attn.to_k.weight",
    "blocks.1.attn.to_q.weight",
    "proj_out.weight",
    entry("blocks.0.attn.to_q.bias", 256),
]


def test_layer_bit_widths_by_name_with_and_without_weight_and_by_glob():
    assert widths(LAYERS, layer_bit_widths={"blocks.0.attn.to_q": 8}) == [8, 4, 4, 16, 16]
    assert widths(LAYERS, layer_bit_widths={"blocks.0.attn.to_q.weight": 16}) == [16, 4, 4, 16, 16]
    assert widths(LAYERS, layer_bit_widths={"blocks.0.*": 2}) == [2, 2, 4, 16, 16]
    assert widths(LAYERS, layer_bit_widths={"*.to_q": 2}) == [2, 4, 2, 16, 16]
    assert widths(LAYERS, layer_bit_widths={"proj_out": 4}) == [4, 4, 4, 4, 16]


def test_an_exact_name_wins_over_globs_and_the_last_glob_wins():
    orders = {"blocks.0.attn.to_q": 8, "blocks.*": 2, "blocks.0.*": 16}
    assert widths(LAYERS, layer_bit_widths=orders) == [8, 16, 2, 16, 16]


def methods(**rules):
    return [a.method for a in assign(LAYERS, **rules).values()]


def test_layer_methods_by_name_and_by_glob_change_no_width_and_say_so():
    assert methods(layer_methods={"blocks.0.attn.to_q": "mse"}) == ["mse", "", "", "", ""]
    assert methods(layer_methods={"blocks.0.attn.to_q": "mse", "blocks.*": "hqq", "*.to_k": "rtn"}) == [
        "mse", "rtn", "hqq", "", ""
    ]  # fmt: skip
    found = assign(LAYERS, layer_methods={"*.to_k": "rtn"})["blocks.0.attn.to_k.weight"]
    assert (found.bit_width, found.rule) == (4, "bit_width")
    assert "Method rtn ordered by layer_methods '*.to_k'" in found.reason


def test_a_kept_layer_has_no_method_and_its_reason_says_so():
    found = assign(LAYERS, layer_methods={"proj_out": "mse", "blocks.1.*": "mse"}, layer_bit_widths={"blocks.1.*": 16})
    assert [a.method for a in found.values()] == [""] * 5
    assert "The method that layer_methods 'proj_out' orders is not needed" in found["proj_out.weight"].reason


def test_sensitive_layers_go_to_8_bits_or_stay():
    rules = {"sensitive_layer_names": ["blocks.0.attn.to_q"], "sensitive_layer_patterns": [r"to_k\."]}
    assert widths(LAYERS, bit_width=2, **rules) == [8, 8, 2, 16, 16]
    assert widths(LAYERS, bit_width=2, skip_sensitive_layers=True, **rules) == [16, 16, 2, 16, 16]
    assert assign(LAYERS, bit_width=2, **rules)["blocks.0.attn.to_k.weight"].rule == "sensitive"


def test_what_the_policy_keeps_is_not_lowered_by_calling_it_sensitive():
    assert widths(LAYERS, sensitive_layer_names=["proj_out"])[3] == 16


def test_precedence():
    rules = {
        "sensitive_layer_patterns": ["to_q"],
        "layer_bit_widths": {"blocks.1.*": 2, "proj_out": 4},
        "skip_sensitive_layers": True,
    }
    found = assign(LAYERS, bit_width=8, **rules)
    assert [a.bit_width for a in found.values()] == [16, 8, 2, 4, 16]
    assert [a.rule for a in found.values()] == [
        "sensitive",
        "bit_width",
        "layer_bit_widths",
        "layer_bit_widths",
        "not a weight",
    ]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"layer_bit_widths": {"blocks.0.attn.to_w": 8}},
            r"layer_bit_widths 'blocks\.0\.attn\.to_w': matches no weight.*'blocks\.0\.attn\.to_[qk]'",
        ),
        ({"layer_bit_widths": {"block.*": 8}}, "matches no weight"),
        (
            {"layer_bit_widths": {"blocks.0.attn.to_q.bias": 8}},
            r"'blocks\.0\.attn\.to_q\.bias' of shape \(256,\) is not the weight",
        ),
        ({"layer_bit_widths": {"*.bias": 8}}, "matches 1 tensors and none is a weight"),
        ({"layer_methods": {"block.*": "mse"}}, r"layer_methods 'block\.\*': matches no weight"),
        ({"layer_methods": {"*.bias": "mse"}}, "matches 1 tensors and none is a weight.*remove the line$"),
        (
            {"sensitive_layer_names": ["BLOCKS.0.attn.to_q"]},
            r"sensitive_layer_names 'BLOCKS\.0\.attn\.to_q': matches no weight",
        ),
        ({"sensitive_layer_names": ["blocks.0.attn.to_q.bias"]}, "matches no weight"),
        ({"sensitive_layer_patterns": ["to_w"]}, "sensitive_layer_patterns 'to_w': matches no weight"),
        ({"sensitive_layer_patterns": ["to_(q"]}, "to_\\(q.*regular expression"),
    ],
)
def test_a_rule_that_matches_nothing_usable_is_an_error(rules, message):
    with pytest.raises(ConfigurationError, match=message):
        widths(LAYERS, **rules)


def test_keeping_a_bias_by_name_is_allowed():
    assert widths(LAYERS, layer_bit_widths={"blocks.0.attn.to_q.bias": 16, "*.bias": 16}) == [4, 4, 4, 16, 16]


def test_weights_in_a_dtype_that_is_no_float_are_errors_unless_kept():
    tensors = [entry("blocks.0.w.weight", 256, 256, dtype="float64")]
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: the weight 'blocks\.0\.w\.weight' is stored as float64"
    ):
        widths(tensors)
    assert widths(tensors, layer_bit_widths={"blocks.0.w": 16}) == [16]


def test_names_with_glob_characters_are_found_exactly():
    assert widths(["a[0].weight", "a0.weight"], layer_bit_widths={"a[0]": 8}) == [8, 4]


def test_hostile_names_take_bounded_time():
    names = [entry(("a." * 5000) + f"{i}.weight") for i in range(20)] + [
        entry("norm" * 2500 + f"{i}.weight") for i in range(20)
    ]
    start = time.perf_counter()
    assert set(widths(names)) == {4}
    with pytest.raises(ConfigurationError, match="matches no weight") as caught:
        widths([*names, "a.weight"], layer_bit_widths={"b" * 100_000: 8})
    assert time.perf_counter() - start < 20
    assert len(str(caught.value)) < 1000


def test_a_large_model_is_assigned_quickly():
    names = [entry(f"model.layers.{i // 400}.mlp.experts.{i % 400}.gate_proj.weight") for i in range(20_000)]
    start = time.perf_counter()
    assert set(widths(names, "LLaDA2MoeModelLM", "text")) == {4}
    assert time.perf_counter() - start < 30
