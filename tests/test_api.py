"""The public entry: names, plans, single arrays, errors, and what a caller may rely on."""

import inspect
import json
import os
import shutil

import numpy as np
import pytest

import arrowquant_nb as aq
from tests.conftest import dit_tensors, tree, write_checkpoint

CONTRACT = [
    "ArrowQuantV2",
    "DiffusionQuantConfig",
    "DeploymentProfile",
    "Modality",
    "QuantMethod",
    "QuantizationStrategy",
    "DiffusionOrchestrator",
    "ParquetV2Extended",
    "QuantizationResult",
    "ValidationReport",
    "quantize_tensor",
    "open_quantized",
    "open_checkpoint",
    "samples",
    "build_info",
    "ArrowQuantError",
    "ConfigurationError",
    "ModelNotFoundError",
    "MetadataError",
    "CheckpointError",
    "ShapeMismatchError",
    "QuantizationError",
    "ValidationError",
    "OutputError",
]


@pytest.mark.parametrize("name", CONTRACT)
def test_every_name_of_the_contract_is_importable_and_documented(name):
    assert name in aq.__all__
    assert name in dir(aq)
    assert inspect.getdoc(getattr(aq, name))


def test_all_public_names_exist_and_unknown_ones_do_not():
    assert all(hasattr(aq, name) for name in aq.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        aq.no_such_name  # noqa: B018


def test_every_error_is_one_of_ours_and_settings_are_value_errors_too():
    errors = [getattr(aq, n) for n in CONTRACT if n.endswith("Error")]
    assert all(issubclass(e, aq.ArrowQuantError) for e in errors)
    assert issubclass(aq.ConfigurationError, ValueError)
    assert issubclass(aq.ShapeMismatchError, ValueError)


def test_signatures_are_those_of_the_contract():
    assert list(inspect.signature(aq.quantize_tensor).parameters) == [
        "array",
        "bit_width",
        "group_size",
        "method",
        "scale_format",
        "rotation",
        "gain_correction",
        "importance",
        "seed",
        "out",
        "n_threads",
    ]
    defaults = {k: p.default for k, p in inspect.signature(aq.quantize_tensor).parameters.items()}
    assert (defaults["bit_width"], defaults["group_size"], defaults["method"], defaults["gain_correction"]) == (
        4,
        64,
        "uls",
        True,
    )
    quantize = list(inspect.signature(aq.ArrowQuantV2.quantize_diffusion_model).parameters)
    assert quantize[1:5] == ["model_path", "output_path", "config", "progress_callback"]
    assert list(inspect.signature(aq.open_quantized).parameters) == ["path", "verify"]


# -- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_says_for_every_tensor_what_the_run_then_does(models, tmp_path):
    quantizer = aq.ArrowQuantV2()
    plan = quantizer.plan(models.dit)
    result = quantizer.quantize_diffusion_model(models.dit, tmp_path / "model")
    assert [(r.name, r.bit_width, r.nbytes, r.reason, r.action) for r in plan.rows] == [
        (r.name, r.bit_width, r.nbytes, r.reason, r.action) for r in result.layers
    ]
    assert plan.size_mb == result.payload_nbytes / 1e6
    assert (plan.modality, plan.modality_reason, plan.strategy) == (
        result.modality,
        result.modality_reason,
        result.strategy,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"bit_width": 2, "min_accuracy": 0.0},
        {"bit_width": 8},
        {"group_size": 256},
        {"method": "rtn"},
        {"method": "mse", "group_size": 32},
    ],
)
def test_planned_bytes_are_exact_for_every_setting(models, settings):
    config = aq.DiffusionQuantConfig(**settings)
    plan = aq.ArrowQuantV2(config).plan(models.dit)
    with aq.open_quantized(models.quantized("dit", **settings)) as model:
        assert {r.name: r.nbytes for r in plan.rows} == {n: t.nbytes for n, t in model.items()}


def test_a_plan_reads_no_weight(models, tmp_path):
    """With the data cut off behind the header nothing could be read; sizes are checked before anything else."""
    folder = tmp_path / "sparse"
    folder.mkdir()
    header = json.dumps(
        {"a.weight": {"dtype": "F32", "shape": [1 << 20, 1 << 14], "data_offsets": [0, 1 << 36]}}
    ).encode()
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + (1 << 36))
    (folder / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    [row] = aq.ArrowQuantV2().plan(folder).rows
    assert row.nbytes == (1 << 20) * ((1 << 14) // 2 + 4 * (1 << 14) // 64)


def test_a_huge_model_is_refused_for_lack_of_space_before_anything_is_read(tmp_path):
    folder = tmp_path / "sparse"
    folder.mkdir()
    rows = shutil.disk_usage(tmp_path).free >> 12
    header = json.dumps(
        {"a.weight": {"dtype": "F16", "shape": [rows, 1 << 15], "data_offsets": [0, rows << 16]}}
    ).encode()
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        try:
            stream.truncate(8 + len(header) + (rows << 16))
        except OSError:
            pytest.skip("the file system does not take a sparse file of this size")
    (folder / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    with pytest.raises(aq.OutputError, match="free space"):
        aq.ArrowQuantV2().quantize_diffusion_model(folder, tmp_path / "model")


# -- runs ------------------------------------------------------------------------------------------------------------


def test_the_source_is_left_exactly_as_it_was(models, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(models.dit, source)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in source.iterdir()}
    aq.ArrowQuantV2().quantize_diffusion_model(source, tmp_path / "model")
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in source.iterdir()} == before


def test_a_source_that_changes_during_the_run_is_an_error(tmp_path):
    source = write_checkpoint(tmp_path / "source", dit_tensors(n_blocks=1))
    weights = source / "diffusion_pytorch_model.safetensors"

    def touch(event):
        if event.kind == "run_started":
            os.utime(weights, ns=(1, 1))

    with pytest.raises(aq.CheckpointError, match="changed"):
        aq.ArrowQuantV2().quantize_diffusion_model(source, tmp_path / "model", on_event=touch)
    assert not (tmp_path / "model" / "manifest.json").exists()


def test_a_config_of_the_call_wins_over_the_one_of_the_object(models, tmp_path):
    quantizer = aq.ArrowQuantV2(aq.DiffusionQuantConfig(bit_width=8))
    assert quantizer.plan(models.dit, aq.DiffusionQuantConfig()).bit_width == 4
    assert quantizer.plan(models.dit).bit_width == 8
    result = quantizer.quantize_diffusion_model(models.mixed, tmp_path / "model", aq.DiffusionQuantConfig())
    assert result.bit_width == 4


def test_a_pipeline_folder_is_quantized_with_its_other_files_copied(tmp_path):
    pipeline = tmp_path / "pipeline"
    write_checkpoint(pipeline / "transformer", dit_tensors(n_blocks=1))
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    index = {
        "_class_name": "DiTPipeline",
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (pipeline / "model_index.json").write_text(json.dumps(index))
    result = aq.ArrowQuantV2().quantize_diffusion_model(pipeline, tmp_path / "model")
    assert "DiTPipeline" in result.modality_reason
    for name in ("config.json", "model_index.json", "scheduler/scheduler_config.json"):
        original = pipeline / ("transformer/config.json" if name == "config.json" else name)
        assert (tmp_path / "model" / name).read_bytes() == original.read_bytes()
    assert aq.ArrowQuantV2().validate_quality(pipeline, tmp_path / "model").passed
    with aq.open_quantized(tmp_path / "model", "full") as model:
        assert model.facts["component"] == "transformer"


@pytest.mark.parametrize("name", ["nowhere", "", "digits_dit", "/nowhere/at/all"])
def test_a_model_that_is_not_there_is_an_error_that_names_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for call in (aq.ArrowQuantV2().plan, lambda m: aq.ArrowQuantV2().quantize_diffusion_model(m, tmp_path / "out")):
        if name:
            with pytest.raises(aq.ModelNotFoundError, match=name):
                call(name)
        else:
            with pytest.raises(aq.ArrowQuantError):
                call(name)
    assert not (tmp_path / "out").exists()


def test_unmatched_layer_rules_are_errors_before_anything_is_written(models, tmp_path):
    config = aq.DiffusionQuantConfig(layer_bit_widths={"transformer_blocks.0.attn1.to_qq": 8})
    with pytest.raises(aq.ConfigurationError, match="to_q"):
        aq.ArrowQuantV2(config).quantize_diffusion_model(models.dit, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_bundled_sample_runs_by_its_name(tmp_path):
    result = aq.ArrowQuantV2(aq.DiffusionQuantConfig(calibration_samples=4)).quantize_diffusion_model(
        "digits-dit", tmp_path / "model"
    )
    assert result.modality == "image"
    assert result.model == "digits-dit"
    assert aq.ArrowQuantV2().validate_quality("digits-dit", tmp_path / "model").passed
    assert aq.reproduce(tmp_path / "model").passed
    assert tree(tmp_path / "model")


# -- the orchestrator step by step -----------------------------------------------------------------------------------


def test_steps_can_be_taken_one_by_one(models):
    orchestrator = aq.DiffusionOrchestrator()
    modality, reason = orchestrator.detect_modality(models.dit)
    assert (modality, "DiTTransformer2DModel" in reason) == (aq.Modality.IMAGE, True)
    strategy = orchestrator.select_strategy(modality)
    assert (strategy.preferred_method, strategy.used_method) == ("gptq", "uls")
    assert "calibration" in strategy.reason
    assert strategy.tables == "none (weights only)"


@pytest.mark.parametrize(
    ("modality", "preferred", "time_aware"),
    [("text", "r2q", True), ("code", "r2q", True), ("image", "gptq", False), ("audio", "gptq", False)],
)
def test_the_strategy_is_that_of_the_contract(modality, preferred, time_aware):
    strategy = aq.DiffusionOrchestrator(aq.DiffusionQuantConfig(bit_width=2)).select_strategy(modality)
    assert strategy.preferred_method == preferred
    assert strategy.time_aware == time_aware


def test_one_array_goes_through_the_same_fallback_as_a_run():
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    orchestrator = aq.DiffusionOrchestrator(aq.DiffusionQuantConfig(bit_width=2, min_accuracy=0.99))
    tensor, attempts = orchestrator.fallback_quantization(weight)
    assert tensor.bit_width == 4
    assert [(a.bit_width, a.passed) for a in attempts] == [(2, False), (4, True)]
    with pytest.raises(aq.QuantizationError, match=r"mine.*INT2.*INT4.*INT8"):
        aq.DiffusionOrchestrator(aq.DiffusionQuantConfig(bit_width=2, min_accuracy=1.0)).fallback_quantization(
            weight, name="mine"
        )


# -- single arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument",
    [
        {"scale_format": "k", "group_size": 128},
        {"rotation": "diagonal"},
        {"rotation": "hadamard", "seed": -1},
        {"method": "gptq"},
        {"method": "nonsense"},
        {"bit_width": 3},
        {"group_size": 0},
        {"n_threads": -1},
    ],
)
def test_settings_that_are_not_there_are_refused(argument):
    with pytest.raises(aq.ConfigurationError):
        aq.quantize_tensor(np.ones((4, 64), np.float32), **argument)


def test_auto_means_the_best_direct_grid():
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    np.testing.assert_array_equal(
        aq.quantize_tensor(weight, method="auto").packed, aq.quantize_tensor(weight, method="uls").packed
    )


def test_build_info_says_what_is_loaded():
    info = aq.build_info()
    assert info["version"] == aq.__version__
    assert info["isa"] in info["available_isas"]
    assert isinstance(info["compiled_core"], bool)
    assert isinstance(info["compiled_kernels"], bool)
    assert info["n_threads"] >= 1
    assert {"python", "numpy", "pyarrow"} <= info["versions"].keys()
    json.dumps(info)
