"""Folders of bundled samples run in diffusers' and transformers' own classes as they do in NumPy."""

import copy
import shutil

import numpy as np
import pytest
from runtime.conftest import call, numpy_model, torch_model
from storage.test_manifest import reseal

from arrowquant_nb import samples
from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import (
    CheckpointError,
    ConfigurationError,
    MetadataError,
    ModelNotFoundError,
    ShapeMismatchError,
    ValidationError,
)
from arrowquant_nb.runs.running import quantized_sample
from arrowquant_nb.storage.quantized import open_quantized

torch = pytest.importorskip("torch")

from arrowquant_nb.runtime import QuantizedLinear, current_time, dequantize_state_dict  # noqa: E402
from arrowquant_nb.runtime.modules import QuantizedConv2d  # noqa: E402
from arrowquant_nb.torch_models import load_quantized  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


def steps_of(name, n=2):
    steps = list(samples.runnable(name).trajectories(n, 0))
    return [steps[0], steps[len(steps) // 2]]


def quantized_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, (QuantizedLinear, QuantizedConv2d))}


@pytest.mark.parametrize("name", ["digits-dit", "docs-mlm"])
@pytest.mark.parametrize("settings", [{"bit_width": 8}, {"bit_width": 4, "scale_format": "k", "group_size": 32}])
def test_a_sample_runs_in_its_own_class_as_in_numpy(folders, name, settings):
    folder = folders(name, **settings)
    model = load_quantized(torch_model(folder), folder)
    stored = [n for n, t in open_quantized(folder).items() if not t.kept]
    assert sorted(f"{n}.weight" for n in quantized_layers(model)) == sorted(stored)
    reference = numpy_model(name, folder)
    for step in steps_of(name):
        expected = reference.forward(step)
        got = call(model, step)
        got = got[:, :1] if name == "digits-dit" else got
        assert np.abs(got - expected).max() < 2e-5 * np.abs(expected).max() + 1e-6


def test_transforms_of_weights_run_as_in_numpy(folders):
    folder = folders("digits-dit", bit_width=4, rotation="hadamard", low_rank=4)
    model = load_quantized(torch_model(folder), folder)
    forms = [layer.form for layer in quantized_layers(model).values()]
    assert any(f.rotation_seed is not None for f in forms)
    assert any(f.low_rank == 4 for f in forms)
    step = steps_of("digits-dit")[0]
    np.testing.assert_allclose(call(model, step)[:, :1], numpy_model("digits-dit", folder).forward(step), atol=2e-5)


def test_a_model_in_bfloat16_stays_in_bfloat16(folders):
    folder = folders("docs-mlm", bit_width=8)
    model = load_quantized(torch_model(folder).bfloat16(), folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    step = steps_of("docs-mlm")[0]
    tensors = {n: torch.from_numpy(v) for n, v in step.inputs.items()}
    with torch.no_grad():
        got = model(**tensors).logits
    assert got.dtype == torch.bfloat16
    expected = numpy_model("docs-mlm", folder).forward(step)
    assert np.linalg.norm(got.float().numpy() - expected) < 0.03 * np.linalg.norm(expected)


def test_tied_weights_stay_tied_and_a_model_without_memory_is_filled(folders):
    folder = folders("docs-mlm", bit_width=8)
    model = load_quantized(torch_model(folder), folder)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    with pytest.raises(CheckpointError, match="meta device"):
        load_quantized(torch_model(folder, "meta"), folder)


def test_dynamic_inputs_round_every_layer_but_those_that_see_the_timestep_only(folders):
    folder = folders("digits-dit", bit_width=8)
    model = load_quantized(torch_model(folder), folder, inputs="per_token")
    rules = {n: m.inputs.rule for n, m in quantized_layers(model).items()}
    assert rules["transformer_blocks.0.attn1.to_q"] == "per_token"
    assert rules["transformer_blocks.0.norm1.linear"] == "float"
    step = steps_of("digits-dit")[0]
    expected = numpy_model("digits-dit", folder).forward(step)
    assert np.linalg.norm(call(model, step)[:, :1] - expected) < 0.05 * np.linalg.norm(expected)
    with pytest.raises(ValidationError, match="has no grids for the inputs"):
        load_quantized(torch_model(folder), folder, inputs="static")


@pytest.mark.parametrize("activations", ["stored", "per_token"])
def test_stored_grids_of_inputs_follow_the_timestep_as_in_numpy(activations, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "digits-a8"
    if not folder.exists():
        config = DiffusionQuantConfig(
            bit_width=8,
            method="uls",
            activation_bit_width=8,
            calibration_samples=2,
            num_time_groups=4,
            min_accuracy=0.5,
        )
        ArrowQuantV2(config).quantize_diffusion_model("digits-dit", folder)
    opened = open_quantized(folder)
    rules = dict.fromkeys(opened.time_aware.by_layer, "static")
    model = load_quantized(torch_model(folder), folder, inputs=None if activations == "stored" else activations)
    found = {f"{n}.weight": m.inputs.rule for n, m in quantized_layers(model).items() if not m.inputs.is_float}
    assert found.keys() == opened.rounded_inputs.keys()
    assert any(len(table.groups) > 1 for table in opened.time_aware.tables)
    assert all(
        rule == (rules.get(n, "per_token") if activations == "stored" else activations) for n, rule in found.items()
    )
    reference = quantized_sample("digits-dit", opened, activations)
    for step in steps_of("digits-dit"):
        expected, got = reference.forward(step), call(model, step)[:, :1]
        # Sums round differently, so a value between two codes may go to the other; layers alone agree to 1e-5.
        assert np.linalg.norm(got - expected) < 5e-3 * np.linalg.norm(expected)
    with pytest.raises(ConfigurationError, match="'per_row'"):
        load_quantized(torch_model(folder), folder, inputs="per_row")


def test_the_plain_state_dict_loads_into_the_float_model(folders):
    folder = folders("digits-dit", bit_width=4, scale_format="k", group_size=32)
    state = dequantize_state_dict(folder)
    assert {v.dtype for v in state.values()} == {torch.float16}
    model = torch_model(folder)
    model.eval().load_state_dict(dequantize_state_dict(folder, torch.float32))
    step = steps_of("digits-dit")[0]
    np.testing.assert_allclose(call(model, step)[:, :1], numpy_model("digits-dit", folder).forward(step), atol=2e-5)


def test_loaded_layers_view_the_files_and_writing_to_them_changes_no_file(folders):
    folder = folders("digits-dit", bit_width=8)
    before = {p.name: p.read_bytes() for p in folder.glob("*.parquet")}
    model = load_quantized(torch_model(folder), folder)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for layer in quantized_layers(model).values():
            layer.weight.packed.zero_()
        for parameter in model.parameters():
            parameter.zero_()
    assert {p.name: p.read_bytes() for p in folder.glob("*.parquet")} == before
    step = steps_of("digits-dit")[0]
    np.testing.assert_allclose(call(copied, step)[:, :1], numpy_model("digits-dit", folder).forward(step), atol=2e-5)


def test_the_folder_of_another_model_is_refused_with_names(folders):
    digits, docs = folders("digits-dit", bit_width=8), folders("docs-mlm", bit_width=8)
    with pytest.raises(ShapeMismatchError, match=r"the folder lacks 'bert.*the model lacks.*DiTTransformer2DModel"):
        load_quantized(torch_model(docs), digits)
    model = torch_model(digits)
    model.proj_out_1 = torch.nn.Linear(7, 256)
    with pytest.raises(ShapeMismatchError, match=r"proj_out_1\.weight.*\(256, 128\).*\(256, 7\)"):
        load_quantized(model, digits)
    model = torch_model(digits)
    model.added = torch.nn.Linear(2, 2)
    with pytest.raises(ShapeMismatchError, match=r"lacks 'added\.weight', 'added\.bias'"):
        load_quantized(model, digits)


def test_damaged_missing_and_newer_folders_are_refused(folders, tmp_path):
    good = folders("digits-dit", bit_width=8)
    model = torch_model(good)
    with pytest.raises(ModelNotFoundError):
        load_quantized(model, tmp_path / "nowhere")
    damaged = shutil.copytree(good, tmp_path / "damaged")
    file = max(damaged.glob("0*.parquet"), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValidationError, match=file.name):
        load_quantized(model, damaged)
    reseal(damaged, lambda manifest: manifest.update(schema_version="3.0"))
    with pytest.raises(MetadataError, match=r"3\.0.*update arrowquant_nb"):
        load_quantized(model, damaged)


def test_a_kept_value_that_overflows_half_precision_is_refused(tmp_path):
    from safetensors.numpy import save_file

    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "metadata.json").write_text('{"modality": "image"}')
    rng = np.random.default_rng(0)
    tensors = {"weight": rng.standard_normal((256, 256), dtype=np.float32), "bias": np.full(256, 1e6, np.float32)}
    save_file(tensors, source / "model.safetensors")
    ArrowQuantV2(DiffusionQuantConfig(bit_width=8)).quantize_diffusion_model(source, tmp_path / "out")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(256, 256))
            self.bias = torch.nn.Parameter(torch.zeros(256))

    assert load_quantized(Net(), tmp_path / "out").weight.shape == (256, 256)
    with pytest.raises(CheckpointError, match=r"bias.*65504"):
        load_quantized(Net().half(), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"bias.*65504"):
        dequantize_state_dict(tmp_path / "out", torch.float16)


def test_a_loaded_model_without_tables_is_not_wrapped(folders):
    folder = folders("digits-dit", bit_width=8)
    model = load_quantized(torch_model(folder), folder)
    assert "forward" not in vars(model)
    assert current_time() is None
