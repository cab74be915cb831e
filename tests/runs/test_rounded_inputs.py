"""Quantized activations and equalized channels from the run to the running model: stored, read back, honoured."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import tree

from arrowquant_nb import (
    ArrowQuantV2,
    ConfigurationError,
    DiffusionQuantConfig,
    LayerReport,
    MetadataError,
    ModelNotFoundError,
    ParquetV2Extended,
    QuantizationResult,
    ShapeMismatchError,
    SpatialQuantMetadata,
    TimeAwareQuantMetadata,
    ValidationError,
    ValidationReport,
    evaluate_sample,
    open_quantized,
    quantized_sample,
    samples,
)
from arrowquant_nb.quantizers.activation_grid import round_rows, round_to_grid
from arrowquant_nb.quantizers.time_tables import LayerTimeTable
from arrowquant_nb.storage.manifest import read_manifest

BLOCK = "transformer_blocks.0."
ATTENTION, MODULATION = f"{BLOCK}attn1.to_q.weight", f"{BLOCK}norm1.linear.weight"
STORED = f"{BLOCK}ff.net.2.weight"  # behind a GELU nothing can be folded
FEW = {"calibration_samples": 4}
pytestmark = pytest.mark.usefixtures("one_thread")


def run(folder, name="digits-dit", calibration=None, **settings):
    config = DiffusionQuantConfig(**(FEW | settings))
    return ArrowQuantV2(config).quantize_diffusion_model(name, folder, calibration=calibration)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Digits with 4-bit weights and 4-bit inputs, equalized and centred where that helps."""
    return run(tmp_path_factory.mktemp("a4") / "model", activation_bit_width=4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same without equalization."""
    return run(tmp_path_factory.mktemp("plain") / "model", activation_bit_width=4, enable_spatial=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Digits with 8-bit inputs and no calibration."""
    return run(tmp_path_factory.mktemp("tokens") / "model", calibration="none", activation_bit_width=8)


def test_every_layer_inside_the_blocks_has_a_grid_and_all_others_stay_float(four):
    rounded = {r.name for r in four.layers if r.inputs is not None}
    assert rounded == {r.name for r in four.layers if r.action == "quantized" and r.role == "linear"}
    assert len(rounded) == 24
    assert MODULATION not in rounded
    assert all(r.inputs.bit_width == 4 and r.inputs.mode in ("static", "time groups") for r in four.layers if r.inputs)
    with open_quantized(four.quantized_path) as model:
        assert dict(model.rounded_inputs) == dict.fromkeys((r.name for r in four.layers if r.inputs), 4)
        assert set(model.time_aware.by_layer) == rounded
        groups = {name: len(table.groups) for name, table in model.time_aware.by_layer.items()}
    assert groups == {r.name: r.inputs.n_groups for r in four.layers if r.inputs}
    assert 1 < max(groups.values()) <= 10


def test_the_strategy_says_what_was_applied(four, plain, text):
    equalized = sum(r.inputs.alpha is not None for r in four.layers if r.inputs)
    assert four.strategy.spatial
    assert f"{equalized} of 24 layers equalized" in four.strategy.reason
    assert four.strategy.tables.startswith("4-bit inputs: ")
    assert not plain.strategy.spatial
    assert not any(r.inputs.alpha is not None or r.inputs.centred for r in plain.layers if r.inputs)
    assert text.strategy.tables == "8-bit inputs: 24 layers per token"
    for result in (four, plain, text):
        assert result.strategy.tables in str(result)
        assert result.strategy.tables in (open_quantized(result.quantized_path).path / "README.md").read_text()
        assert read_manifest(open_quantized(result.quantized_path).path).model["strategy"] == result.strategy.to_dict()


def network_db(result, activations="stored"):
    return evaluate_sample("digits-dit", result.quantized_path, n=2, activations=activations)["network_sqnr_db"]


def test_4_bit_inputs_gain_4_db_at_the_network_by_what_is_applied(four, plain, tmp_path):
    """Against one static grid per layer and nothing done to channels."""
    still = run(tmp_path / "model", activation_bit_width=4, enable_spatial=False, enable_time_aware=False)
    assert {r.inputs.mode for r in still.layers if r.inputs} == {"static"}
    groups = network_db(plain)
    assert network_db(still) + 1 < groups < network_db(four) - 2
    assert network_db(four) > network_db(still) + 4
    for result, stored in ((four, network_db(four)), (plain, groups)):
        assert stored < network_db(result, "per_token") < network_db(result, "float")


def test_no_layer_is_worse_for_being_equalized(four):
    for report in four.layers:
        if report.inputs is None:
            continue
        kept = report.inputs.alpha is not None
        assert not kept or report.inputs.equalization_gain_db > 0
        assert not report.inputs.centred or report.inputs.smoothing_gain_db > 0
        assert report.inputs.output_sqnr < report.output_sqnr  # rounding an input is never free


def test_what_is_stored_reads_back(four):
    with open_quantized(four.quantized_path, "full") as model:
        spatial, times = model.spatial, model.time_aware
        for report in four.layers:
            if report.inputs is None:
                assert report.name not in spatial.equalization_scales
                continue
            file = ParquetV2Extended(model.path / model[report.name].file)
            assert TimeAwareQuantMetadata.from_dict(file.metadata["time_aware"]) == times.of_layer(report.name)
            stats = file.metadata["activation_stats"]
            assert len(stats["times"]) == len(stats["low"]) == len(stats["high"]) == 25
            assert all(low < high for low, high in zip(stats["low"], stats["high"], strict=True))
            assert (report.inputs.alpha is None) == (report.name not in spatial.alphas)
            if report.inputs.alpha is None:
                assert file.metadata["spatial"] is None or not report.inputs.alpha
                continue
            own = SpatialQuantMetadata.from_dict(file.metadata["spatial"])
            assert own.alphas == {report.name: report.inputs.alpha}
            assert own.folded == ((report.name,) if report.inputs.folded else ())
            [row] = file.rows(report.name)
            if report.inputs.folded:  # a reader that takes the column for something to undo finds none
                assert row["equalization"] is None
                scales = np.float32(own.equalization_scales[report.name])
            else:
                assert own.equalization_scales == {report.name: ()}  # they stand in their column
                scales = np.frombuffer(row["equalization"], np.float16)
            np.testing.assert_array_equal(scales, np.float32(spatial.equalization_scales[report.name]))
    assert LayerReport.from_dict(json.loads(json.dumps(four.layers[5].to_dict()))) == four.layers[5]
    assert QuantizationResult.from_dict(json.loads(json.dumps(four.to_dict()))) == four
    assert four.to_arrow().num_rows == len(four.layers)


def test_layers_that_read_one_input_share_grid_and_scales(four):
    """An engine needs to divide and round the input once for query, key and value."""
    with open_quantized(four.quantized_path) as model:
        names = [f"{BLOCK}attn1.to_{part}.weight" for part in "qkv"]
        assert len({model.spatial.equalization_scales.get(name) for name in names}) == 1
        tables = [model.time_aware.by_layer[name].groups for name in names]
        assert tables[0] == tables[1] == tables[2]


def test_the_hook_does_what_the_metadata_say(four):
    """One layer's rounding, worked out from the stored numbers alone."""
    with open_quantized(four.quantized_path) as model:
        sample = quantized_sample("digits-dit", model)
        spatial, table = model.spatial, model.time_aware.by_layer[ATTENTION]
        weight = np.asarray(model.dequantize(ATTENTION))
    x = np.random.default_rng(0).standard_normal((2, 3, 128)).astype(np.float32)
    for time in (39, 519, 999):
        n, group = next((n, g) for n, g in enumerate(table.groups) if g.time_range[0] <= time < g.time_range[1])
        assert ATTENTION in spatial.folded  # what comes is divided already
        means = spatial.activation_means.get(ATTENTION, ((0.0,) * 128,))
        mean = np.float32(means[n if len(means) > 1 else 0])
        rounded = round_to_grid(x - mean, group.scale, group.zero_point, 4) + mean
        np.testing.assert_allclose(sample.linear(ATTENTION, x, time), rounded @ weight.T, rtol=1e-4, atol=1e-4)
    # What depends on time and class only is not rounded.
    unrounded = x[:, 0] @ np.asarray(open_quantized(four.quantized_path).dequantize(MODULATION)).T
    np.testing.assert_allclose(sample.linear(MODULATION, x[:, 0], 519), unrounded, rtol=1e-5, atol=1e-5)


def test_without_calibration_inputs_get_a_scale_per_token_and_the_result_says_so(text):
    assert [w for w in text.warnings if "24 layers have no stored grid (calibration is switched off)" in w]
    assert not text.strategy.time_aware or "per token" in text.strategy.tables
    assert {r.inputs.mode for r in text.layers if r.inputs} == {"per token"}
    with open_quantized(text.quantized_path) as model:
        assert model.time_aware is None
        assert model.spatial is None
        assert set(model.rounded_inputs.values()) == {8}
        hook = quantized_sample("digits-dit", model).linear
        weight = np.asarray(model.dequantize(ATTENTION))
    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    np.testing.assert_allclose(hook(ATTENTION, x, 3), round_rows(x, 8) @ weight.T, rtol=1e-4, atol=1e-4)
    figures = [evaluate_sample("digits-dit", text.quantized_path, n=2, activations=a) for a in ("stored", "per_token")]
    assert figures[0] == figures[1]


def test_the_plan_says_it_before(tmp_path):
    config = DiffusionQuantConfig(activation_bit_width=8, num_time_groups=3)
    plan = ArrowQuantV2(config).plan("digits-dit")
    assert plan.strategy.tables == "8-bit inputs, up to 3 timestep groups per layer"
    assert plan.strategy.spatial
    assert plan.strategy.tables in str(plan)
    still = ArrowQuantV2(config.replace(enable_time_aware=False)).plan("digits-dit")
    assert still.strategy.tables == "8-bit inputs, one static grid per layer"
    without = ArrowQuantV2(config).plan("digits-dit", calibration="none")
    assert "a scale per token, since there is no calibration" in without.strategy.tables
    assert not without.strategy.spatial
    assert ArrowQuantV2().plan("digits-dit").strategy.tables == "none (weights only)"


def test_no_more_groups_than_asked_for_and_none_that_gain_little(tmp_path):
    two = run(tmp_path / "two", activation_bit_width=8, num_time_groups=2, enable_spatial=False)
    assert {r.inputs.n_groups for r in two.layers if r.inputs} <= {1, 2}
    better = [r.inputs.table_gain_db for r in two.layers if r.inputs and r.inputs.n_groups == 2]
    assert better
    assert min(better) >= 0.2


def test_a_second_run_takes_everything_over_and_other_settings_do_not(four, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(four.quantized_path, folder)
    before = tree(folder)
    again = run(folder, activation_bit_width=4)
    assert again.reused == len(again.layers)
    assert again.strategy == four.strategy
    assert [r.inputs for r in again.layers] == [r.inputs for r in four.layers]
    assert tree(folder) == before
    fewer = run(folder, activation_bit_width=4, num_time_groups=1)
    assert {r.inputs.n_groups for r in fewer.layers if r.inputs} == {1}
    assert ArrowQuantV2().validate_quality("digits-dit", folder).passed


def test_tables_are_the_same_for_any_number_of_threads(four, tmp_path):
    other = run(tmp_path / "model", activation_bit_width=4, num_threads=1)
    assert tree(tmp_path / "model") == tree(open_quantized(four.quantized_path).path)
    assert other.strategy == four.strategy


def test_weights_only_equalization_competes_by_the_error_at_the_output(tmp_path):
    """What is kept gains more than its scales cost; what is not is reported with its figure."""
    result = run(tmp_path / "model", calibration_samples=8, layer_bit_widths={"transformer_blocks.[12].*": 16})
    tried = [r for r in result.layers if r.inputs is not None]
    assert tried
    for report in tried:
        assert report.inputs.mode == "float"
        asked = 6.0206 * 16 / report.shape[0]
        assert (report.inputs.alpha is not None) == (report.inputs.equalization_gain_db > asked)
    assert result.strategy.spatial == any(r.inputs.alpha is not None for r in tried)
    assert "weights only" in result.strategy.tables


def test_rotated_weights_have_their_inputs_rounded_in_the_same_basis(tmp_path):
    """Gptq, rotation and rounded inputs together: the rotation is applied, and helps at 4 bits."""
    kept = {"transformer_blocks.[123].*": 16}
    plain, rotated = (
        run(tmp_path / rotation, activation_bit_width=4, rotation=rotation, layer_bit_widths=kept, enable_spatial=False)
        for rotation in ("none", "hadamard")
    )
    assert all(r.rotation_seed == 0 for r in rotated.layers if r.inputs)
    assert network_db(rotated) > network_db(plain) + 1


def test_validating_a_sample_runs_it_with_its_rounded_inputs(four, models):
    report = ArrowQuantV2().validate_quality("digits-dit", four.quantized_path, n_samples=2)
    assert report.network == evaluate_sample("digits-dit", four.quantized_path, n=2)
    assert ValidationReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert f"SQNR {report.network['network_sqnr_db']:.1f} dB over 2 samples, rounded inputs included" in str(report)
    with pytest.raises(ModelNotFoundError, match="is no bundled sample"):
        ArrowQuantV2().validate_quality(models.dit, models.quantized("dit"), n_samples=2)


def test_unknown_modes_and_other_models_are_refused(four):
    with pytest.raises(ConfigurationError, match="activations 'tokens' is not one of stored, per_token, float"):
        quantized_sample("digits-dit", four.quantized_path, "tokens")
    with pytest.raises(ShapeMismatchError, match="is not a quantized 'docs-mlm'"):
        quantized_sample("docs-mlm", four.quantized_path)


def test_a_sampler_with_other_steps_is_told_which_are_not_covered(four):
    table = open_quantized(four.quantized_path).time_aware
    steps = list(samples.runnable("digits-dit").sampler.timesteps(25))
    table.check_covers([*steps, 3, 999])  # one step's distance beyond the outermost
    several = next(layer for layer in table.tables if len(layer.groups) > 2)
    partly = replace(table, tables=(LayerTimeTable.of_groups("q.weight", several.groups[1:]),))
    with pytest.raises(ValidationError, match=r"q\.weight: the time table covers timesteps"):
        partly.check_covers([*steps, 3])
    with pytest.raises(ValidationError, match=r"q\.weight: the grids .* the model was called at 3: calibrate"):
        partly.groups_at(3)


@pytest.mark.parametrize("damage", ["width", "table", "gap", "layer", "scales"])
def test_damaged_metadata_name_the_layer(four, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(four.quantized_path, folder)
    manifest = read_manifest(folder)
    entry = manifest.tensors[STORED if damage == "scales" else ATTENTION]
    if damage == "width":
        entry["activation_bit_width"] = 5
    elif damage == "table":
        entry["time_aware"] = {"tables": 3}
    elif damage == "gap":
        group = entry["time_aware"]["tables"][0]["groups"][0]
        group["time_range"] = [group["time_range"][0], group["time_range"][1] - 1]
    elif damage == "layer":
        entry["time_aware"]["tables"][0]["layer"] = "another.weight"
    else:
        for tile in entry["tiles"]:
            del tile["equalization"]
    (folder / "manifest.json").write_bytes(manifest.encode())
    with open_quantized(folder) as model, pytest.raises(MetadataError, match=r"to_q|net\.2"):
        quantized_sample("digits-dit", model)
