"""Folding changes no output: on the bundled transformer, and on transformers' own classes."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb import ConfigurationError, ShapeMismatchError, samples
from arrowquant_nb.quantizers.folding import fold_equalization, foldable_places

pytestmark = pytest.mark.usefixtures("one_thread")
DIT = "DiTTransformer2DModel"


def shared_inputs(names, architecture):
    """Groups of layers that must share their scales."""
    return [place.consumers for place in foldable_places(names, architecture) if len(place.consumers) > 1]


few = settings(max_examples=30)


def some_scales(weights, groups, alone=(), seed=0):
    """Scales over three orders of magnitude, one array per group of layers with a common input."""
    rng = np.random.default_rng(seed)
    scales = {}
    for group in (*groups, *((name,) for name in alone)):
        values = (
            np.exp(rng.normal(0, 1.5, math.prod(weights[group[0]].shape[1:]))).astype(np.float16).astype(np.float32)
        )
        scales |= dict.fromkeys(group, values)
    return scales


def relative_error(found, expected):
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def model():
    return samples.runnable("digits-dit")


@pytest.fixture(scope="module")
def scales(model):
    alone = [n for n in model.layers() if n.endswith(("to_out.0.weight", "ff.net.0.proj.weight", "ff.net.2.weight"))]
    return some_scales(model.weights, shared_inputs(model.weights, DIT), (*alone, "proj_out_2.weight"))


def test_query_key_and_value_share_an_input(model):
    block = "transformer_blocks.2.attn1"
    assert (f"{block}.to_q.weight", f"{block}.to_k.weight", f"{block}.to_v.weight") in shared_inputs(model.weights, DIT)
    assert len(shared_inputs(model.weights, DIT)) == 4
    assert shared_inputs(model.weights, "SomethingNew") == []


def test_all_foldings_together_leave_the_output_as_it_was(model, scales):
    folding = fold_equalization(model.weights, scales, DIT)
    assert sorted(folding.folded) == sorted(n for n in scales if not n.endswith("ff.net.2.weight"))
    assert sorted(folding.stored) == sorted(n for n in scales if n.endswith("ff.net.2.weight"))
    other = samples.runnable("digits-dit", {**model.weights, **folding.weights})
    steps = list(model.trajectories(3, 0))
    for step in (steps[0], steps[12], steps[-1]):
        assert relative_error(other.forward(step), model.forward(step)) < 1e-5


def test_the_inputs_come_divided(model, scales):
    folding = fold_equalization(model.weights, scales, DIT)
    other = samples.runnable("digits-dit", {**model.weights, **folding.weights})
    step = next(iter(model.trajectories(2, 0)))
    seen = {}
    for key, runnable in (("before", model), ("after", other)):

        def hook(name, x, time, key=key, runnable=runnable):
            seen[key, name] = x
            return runnable.linear(name, x, time)

        runnable.forward(step, hook)
    for name in folding.folded:
        assert relative_error(seen["after", name] * scales[name], seen["before", name]) < 1e-5


def test_the_given_weights_are_not_written(model, scales):
    before = {name: array.copy() for name, array in model.weights.items()}
    fold_equalization(model.weights, scales, DIT)
    for name, array in model.weights.items():
        np.testing.assert_array_equal(array, before[name])


def test_layers_with_one_input_and_different_scales_are_stored(model, scales):
    names = [f"transformer_blocks.0.attn1.to_{p}.weight" for p in "qkv"]
    own = {name: scales[name] * np.float32(k + 1) for k, name in enumerate(names)}
    folding = fold_equalization(model.weights, own, DIT)
    assert folding.folded == ()
    assert folding.stored == tuple(own)
    assert folding.weights == {}
    only_query = fold_equalization(model.weights, {names[0]: scales[names[0]]}, DIT)
    assert only_query.stored == (names[0],)


def test_an_unknown_architecture_stores_everything(model, scales):
    folding = fold_equalization(model.weights, scales, "SomethingNew")
    assert folding.weights == {}
    assert folding.stored == tuple(scales)


def test_scales_that_do_not_fit_are_refused_by_name(model, scales):
    name = "proj_out_2.weight"
    with pytest.raises(ShapeMismatchError, match=name):
        fold_equalization(model.weights, {name: scales[name][:5]}, DIT)
    with pytest.raises(ShapeMismatchError, match="nowhere"):
        fold_equalization(model.weights, {"nowhere.weight": scales[name]}, DIT)
    with pytest.raises(ConfigurationError, match=name):
        fold_equalization(model.weights, {name: 0 * scales[name]}, DIT)


def test_a_producer_of_another_width_is_refused_by_name(model, scales):
    weights = {**model.weights, "proj_out_1.weight": model.weights["proj_out_1.weight"][:-1]}
    with pytest.raises(ShapeMismatchError, match="proj_out_1"):
        fold_equalization(weights, {"proj_out_2.weight": scales["proj_out_2.weight"]}, DIT)


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 16), (8, 24), (8, 7)])
def test_parallel_branches_of_impossible_widths_are_refused_by_name(inputs, outputs):
    """Attention and gated branch are both there: 3 width + 2 hidden outputs make width + hidden inputs."""
    block = "single_transformer_blocks.0.attn"
    weights = {f"{block}.to_qkv_mlp_proj.weight": np.ones((outputs, 4)), f"{block}.to_out.weight": np.ones((4, inputs))}
    with pytest.raises(ShapeMismatchError, match="to_qkv_mlp_proj"):
        fold_equalization(weights, {f"{block}.to_out.weight": np.ones(inputs, np.float32)}, "Flux2Transformer2DModel")


def check_torch_model(model, architecture, run, foldable, but=()):
    """Fold random scales into a torch model, every layer given some, and compare its outputs in float64."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    weights = {name: value.numpy().astype(np.float32) for name, value in model.state_dict().items()}
    layers = [n for n, w in weights.items() if n.endswith(".weight") and w.ndim > 1]
    groups = [place.consumers for place in foldable_places(weights, architecture)]
    assert all(foldable_places(weights, "SomethingNew") == [] for _ in groups)
    grouped = {name for group in groups for name in group}
    scales = some_scales(weights, groups, [name for name in layers if name not in grouped])
    folding = fold_equalization(weights, scales, architecture)
    expected = re.compile(rf"(?:.+\.)?(?:{'|'.join(map(re.escape, foldable))})\.weight")
    assert sorted(folding.folded) == [n for n in sorted(layers) if expected.fullmatch(n) and n not in but]
    assert sorted(folding.stored) == sorted(set(layers) - set(folding.folded))
    assert set(folding.weights) <= set(weights)
    with torch.no_grad():
        before = run(model.double()).numpy()
        state = {name: torch.from_numpy(np.array(value)) for name, value in {**weights, **folding.weights}.items()}
        model.load_state_dict(state)
        assert relative_error(run(model).numpy(), before) < 1e-5
        state |= {name: torch.from_numpy(weights[name]) for name in folding.weights if name not in folding.folded}
        model.load_state_dict(state)  # what is folded matters to the output
        assert relative_error(run(model).numpy(), before) > 1e-3


@pytest.mark.torch
def test_bert_folds_its_values_and_nothing_else():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config).eval()
    tokens = torch.arange(24).reshape(2, 12)
    check_torch_model(
        model, "BertForMaskedLM", lambda m: m(input_ids=tokens).logits,
        ("attention.output.dense",),
    )  # fmt: skip


@pytest.mark.torch
def test_llada_folds_all_of_its_blocks_and_not_the_last_layer():
    """Its class is code from the hub, which is not run here: `tiny_torch.LLaDA` computes what its blocks do."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    import tiny_torch

    torch.manual_seed(0)
    tokens = torch.arange(24).reshape(2, 12)
    check_torch_model(
        tiny_torch.LLaDA(), "LLaDAModelLM", lambda m: m(tokens),
        ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"),
        but=["model.transformer.ff_out.weight"],
    )  # fmt: skip


@pytest.mark.torch
def test_dream_folds_its_norms_and_the_gated_branch():
    """Dream computes what Qwen2 computes, with the same names; its values are shared by several heads."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).eval()
    tokens = torch.arange(24).reshape(2, 12)
    check_torch_model(
        model, "DreamModel", lambda m: m(input_ids=tokens).logits,
        ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
    )  # fmt: skip


SELF = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
JOINT = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_out.0",
    "attn.to_add_out", "ff.net.0.proj", "ff_context.net.0.proj", "proj_out",
)  # fmt: skip
HUNYUAN = (*JOINT, "proj_mlp")
LTX2 = tuple(f"{name}.to_out.0" for name in ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn",
                                             "video_to_audio_attn"))  # fmt: skip
UNET = (*SELF, "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in")
CROSS = ("attn1.to_out.0", "attn2.to_q", "attn2.to_out.0")
# Builder of the model, its options, the layers that are folded by how their names end.
FOLDABLE = [
    ("dit", {}, (*SELF, "ff.net.0.proj", "proj_out_2")),
    ("pixart", {}, ("attn1.to_out.0", "attn2.to_out.0")),
    ("unet", {}, (*UNET, "attn2.to_q")),
    ("sdxl_unet", {}, (*UNET, "attn2.to_q")),
    ("audioldm2", {}, UNET),
    ("stable_audio", {}, (*SELF, "attn2.to_q", "ff.net.0.proj", "ff.net.2")),
    ("wan", {}, CROSS),
    ("wan", {"cross_attn_norm": False}, ("attn1.to_out.0", "attn2.to_out.0")),
    ("wan", {"added_kv_proj_dim": 128, "image_dim": 32}, CROSS),
    ("sd3", {}, JOINT),
    ("sd3", {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}, (*JOINT, "attn2.to_q", "attn2.to_k", "attn2.to_v",
                                                                       "attn2.to_out.0")),
    ("flux", {}, (*JOINT, "proj_mlp")),
    ("hunyuan_video", {}, HUNYUAN),
    ("hunyuan_video", {"image_condition_type": "token_replace"}, HUNYUAN),
    ("hunyuan_video15", {}, JOINT),
    ("hunyuan_image", {}, HUNYUAN),
    ("flux2", {}, ("attn.to_out.0", "attn.to_add_out", "ff.linear_out", "ff_context.linear_out", "attn.to_out")),
    ("ltx", {}, ("attn1.to_out.0", "attn2.to_out.0")),
    ("ltx2", {}, LTX2),
    ("ltx2", dict.fromkeys(("gated_attn", "audio_gated_attn", "cross_attn_mod", "audio_cross_attn_mod"), True), LTX2),
    ("chroma", {}, ("attn.to_out.0", "attn.to_add_out")),
    ("qwen_image", {}, (*JOINT, "img_mlp.net.0.proj", "txt_mlp.net.0.proj")),
    ("sana", {}, ("attn1.to_out.0", "attn2.to_out.0", "ff.conv_point")),
    ("cogvideox", {}, (*SELF, "ff.net.0.proj")),
]  # fmt: skip


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")  # diffusers' own Chroma still uses it
@pytest.mark.parametrize(("name", "options", "foldable"), FOLDABLE)
def test_the_models_of_diffusers_compute_what_they_did_before(name, options, foldable):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    import tiny_torch

    torch.manual_seed(0)
    model, call = getattr(tiny_torch, name)(**options)
    arguments = as_double(call(400))
    # The last layer of a single block of FLUX reads what stands behind a GELU too.
    but = [n for n in model.state_dict() if n.startswith("single_transformer_blocks") and n.endswith("proj_out.weight")]
    check_torch_model(
        model.eval(), type(model).__name__, lambda m: m(**arguments, return_dict=False)[0], foldable, but
    )  # fmt: skip


def as_double(value):
    """Arguments of a call in float64, so that only what folding rounds is left."""
    if isinstance(value, dict):
        return {name: as_double(entry) for name, entry in value.items()}
    return value.double() if getattr(value, "is_floating_point", bool)() else value


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans(), st.floats(0.1, 3.0))
@few
def test_any_scales_leave_a_modulated_block_as_it_was(seed, width, with_bias, spread):
    """norm(x) (1 + scale) + shift in front of three layers, values in front of a fourth: worked out in float64."""
    rng = np.random.default_rng(seed)
    block = "transformer_blocks.0"
    shapes = {
        f"{block}.norm1.linear.weight": (6 * width, 5), f"{block}.ff.net.0.proj.weight": (7, width),
        f"{block}.attn1.to_out.0.weight": (3, width),
        **{f"{block}.attn1.to_{p}.weight": (width, width) for p in "qkv"},
    }  # fmt: skip
    if with_bias:
        shapes |= {f"{block}.norm1.linear.bias": (6 * width,), f"{block}.attn1.to_v.bias": (width,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    values = [np.exp(rng.normal(0, spread, width)).astype(np.float32) for _ in range(3)]
    groups = [[f"{block}.attn1.to_{p}.weight" for p in "qkv"], [f"{block}.ff.net.0.proj.weight"]]
    groups.append([f"{block}.attn1.to_out.0.weight"])
    scales = {name: v for group, v in zip(groups, values, strict=True) for name in group}
    folding = fold_equalization(weights, scales, DIT)
    assert sorted(folding.folded) == sorted(scales)

    def outputs(weights):
        w = {name: array.astype(np.float64) for name, array in weights.items()}
        t, x = np.linspace(-1, 1, 5), np.linspace(-2, 2, 4 * width).reshape(4, width)
        parts = (w[f"{block}.norm1.linear.weight"] @ t + w.get(f"{block}.norm1.linear.bias", 0.0)).reshape(6, width)
        attention = x * (1 + parts[1]) + parts[0]
        found = [attention @ w[f"{block}.attn1.to_{p}.weight"].T for p in "qk"]
        v = attention @ w[f"{block}.attn1.to_v.weight"].T + w.get(f"{block}.attn1.to_v.bias", 0.0)
        found.append(v @ w[f"{block}.attn1.to_out.0.weight"].T)
        return [*found, (x * (1 + parts[4]) + parts[3]) @ w[f"{block}.ff.net.0.proj.weight"].T]

    for found, expected in zip(outputs({**weights, **folding.weights}), outputs(weights), strict=True):
        assert relative_error(found, expected) < 1e-5 * max(1.0, float(max(map(np.max, values)))) ** 2
