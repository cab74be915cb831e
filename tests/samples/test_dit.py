"""The NumPy transformer agrees with diffusers, and every product with a weight goes through the hook."""

import json
import math
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arrowquant_nb import samples
from arrowquant_nb.samples.dit import DiT, position_features, time_features
from arrowquant_nb.samples.runnable import Step

FOLDER = samples.WEIGHTS / "digits-dit"


@pytest.fixture(scope="module")
def model():
    return samples.runnable("digits-dit")


@pytest.fixture
def step():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 1, 8, 8), dtype=np.float32)
    return Step({"hidden_states": images, "class_labels": np.array([0, 3, 9, 10])}, 480)


def test_time_features_start_with_cosines_of_one_radian_per_timestep():
    features = time_features(2)
    assert features.shape == (1, 256)
    assert features[0, 0] == pytest.approx(math.cos(2))
    assert features[0, 128] == pytest.approx(math.sin(2))
    assert features[0, 127] == pytest.approx(math.cos(2e-4))


def test_positions_hold_the_column_first_then_the_row():
    positions = position_features(4, 8)
    assert positions.shape == (16, 8)
    assert positions[1, 0] == pytest.approx(math.sin(1))  # second patch of the first row
    assert positions[1, 4] == 0
    assert positions[4, 0] == 0
    assert positions[4, 4] == pytest.approx(math.sin(1))  # first patch of the second row


def test_layers_are_the_matrices_and_kernels_without_biases_and_class_tables(model):
    stored = load_file(FOLDER / "diffusion_pytorch_model.safetensors")
    expected = {n: a.shape for n, a in stored.items() if a.ndim >= 2 and "embedding_table" not in n}
    assert model.layers() == expected
    assert len(expected) == 1 + 4 * 9 + 2


def test_the_hook_sees_every_layer_exactly_once_with_its_columns_and_the_time(model, step):
    seen = []

    def hook(name, x, time):
        seen.append((name, x.shape[-1], x.dtype, time))
        return model.linear(name, x, time)

    model.forward(step, hook)
    layers = model.layers()
    assert sorted(name for name, *_ in seen) == sorted(layers)
    for name, columns, dtype, time in seen:
        assert columns == math.prod(layers[name][1:])
        assert dtype == np.float32
        assert time == 480


def test_a_hook_that_multiplies_itself_gives_the_same_output(model, step):
    def hook(name, x, time):
        weight = model.weights[name]
        return np.einsum("...k,ok->...o", x, weight.reshape(len(weight), -1)).astype(np.float32)

    np.testing.assert_allclose(model.forward(step, hook), model.forward(step), atol=1e-4)


@pytest.mark.parametrize(
    "layer", ["pos_embed.proj.weight", "transformer_blocks.2.attn1.to_v.weight", "proj_out_2.weight"]
)
def test_changing_one_weight_changes_the_output(model, step, layer):
    changed = samples.runnable("digits-dit", {**model.weights, layer: model.weights[layer] * 1.1})
    assert np.abs(changed.forward(step) - model.forward(step)).max() > 1e-3


def test_the_output_depends_on_class_and_time_and_only_on_its_own_image(model, step):
    images, labels = step.inputs["hidden_states"], step.inputs["class_labels"]
    whole = model.forward(step)
    alone = model.forward(Step({"hidden_states": images[1:2], "class_labels": labels[1:2]}, 480))
    np.testing.assert_allclose(alone, whole[1:2], atol=1e-5)
    other_class = model.forward(Step({"hidden_states": images, "class_labels": (labels + 1) % 10}, 480))
    other_time = model.forward(Step(step.inputs, 40))
    assert np.abs(other_class - whole).max() > 1e-2
    assert np.abs(other_time - whole).max() > 1e-2


def test_weights_are_read_only_copies_of_any_float_type(model, step):
    given = {name: array.astype(ml_dtypes.bfloat16) for name, array in model.weights.items()}
    rounded = samples.runnable("digits-dit", given)
    name = "proj_out_2.weight"
    assert rounded.weights[name].dtype == np.float32
    np.testing.assert_array_equal(rounded.weights[name], given[name].astype(np.float32))
    with pytest.raises(ValueError, match="read-only"):
        rounded.weights[name][0] = 0
    given[name][:] = 0
    assert rounded.weights[name].any()
    assert given[name].flags.writeable


def test_weights_that_do_not_fit_are_refused_by_name(model):
    weights = dict(model.weights)
    with pytest.raises(ValueError, match=r"lack 1 of .* first 'proj_out_1\.weight'"):
        samples.runnable("digits-dit", {n: a for n, a in weights.items() if n != "proj_out_1.weight"})
    with pytest.raises(ValueError, match=r"no place for 1 of .* first 'stray'"):
        samples.runnable("digits-dit", weights | {"stray": np.zeros(1)})
    with pytest.raises(ValueError, match=r"'proj_out_2\.weight' has shape \[128, 4\].*\[4, 128\]"):
        samples.runnable("digits-dit", weights | {"proj_out_2.weight": weights["proj_out_2.weight"].T})


def test_a_bfloat16_folder_runs(tmp_path, model, step):
    folder = shutil.copytree(FOLDER, tmp_path / "bf16")
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in model.weights.items()}
    save_file(arrays, folder / "diffusion_pytorch_model.safetensors")
    np.testing.assert_array_equal(
        DiT.from_folder(folder).forward(step), samples.runnable("digits-dit", arrays).forward(step)
    )


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("config.json", "norm_type", "ada_norm_single"),
        ("config.json", "in_channels", 3),
        ("scheduler/scheduler_config.json", "prediction_type", "epsilon"),
        ("scheduler/scheduler_config.json", "timestep_spacing", "leading"),
    ],
)
def test_a_variant_that_is_not_implemented_is_refused_by_field(tmp_path, file, field, value):
    folder = shutil.copytree(FOLDER, tmp_path / "other")
    config = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(config | {field: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        DiT.from_folder(folder)


@pytest.mark.torch
@pytest.mark.parametrize("time", [0, 39, 500, 999])
@pytest.mark.parametrize("name", ["digits-dit", "plucks-dit"])
def test_the_forward_pass_agrees_with_diffusers_to_1e_minus_4(name, time):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(samples.load(name), torch_dtype=torch.float32).eval()
    model = samples.runnable(name)
    size, labels = model.config.image_size, np.arange(model.config.n_classes + 1)
    images = np.random.default_rng(time).standard_normal((len(labels), 1, size, size), dtype=np.float32)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(images), timestep=torch.full((len(labels),), time), class_labels=torch.from_numpy(labels)
        ).sample.numpy()
    ours = model.forward(Step({"hidden_states": images, "class_labels": labels}, time))
    assert ours.shape == expected.shape == images.shape
    assert np.abs(ours - expected).max() <= 1e-4


@pytest.mark.torch
@pytest.mark.parametrize("name", ["digits-dit", "plucks-dit"])
def test_diffusers_loads_the_folder_without_missing_or_unexpected_tensors(name):
    diffusers = pytest.importorskip("diffusers")
    loaded, info = diffusers.DiTTransformer2DModel.from_pretrained(samples.load(name), output_loading_info=True)
    model = samples.runnable(name)
    assert sum(p.numel() for p in loaded.parameters()) == sum(a.size for a in model.weights.values())
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
