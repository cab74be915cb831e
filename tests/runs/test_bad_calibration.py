"""Calibrations that do not fit: typed errors that name file and layer, before anything is stored."""

import dataclasses

import numpy as np
import pytest
from conftest import write_checkpoint

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig, MetadataError, ShapeMismatchError, ValidationError
from arrowquant_nb.calibration.capture import FIT, HELD_OUT
from arrowquant_nb.calibration.capture_file import write_calibration
from arrowquant_nb.calibration.inputs import InputStatistics
from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings

FIRST, SECOND = "transformer_blocks.0.attn1.to_q.weight", "transformer_blocks.0.attn1.to_out.0.weight"
SETTINGS = CalibrationSettings(n_samples=4, rows_per_step=8, held_out_rows_per_step=8)
CONFIG = DiffusionQuantConfig(activation_bit_width=8, modality="image", num_time_groups=2, min_accuracy=0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((128, 128)).astype(np.float32) for name in (FIRST, SECOND)}
    return write_checkpoint(tmp_path_factory.mktemp("bad") / "source", weights)


def statistics_of(names=(FIRST, SECOND), columns=128, times=(900, 500, 100), settings=SETTINGS):
    inputs = InputStatistics(settings)
    for which in (FIT, HELD_OUT):
        for number, time in enumerate(times):
            rng = np.random.default_rng([which, number])
            inputs.begin_call(which, number)
            for name in names:
                inputs.observe(name, time, rng.standard_normal((16, columns)).astype(np.float32) * (1 + time), 1.0)
    return Calibration(inputs.finish(), "capture", settings, "0" * 32)


def quantize(source, tmp_path, calibration):
    file = tmp_path / "inputs.parquet"
    write_calibration(file, calibration)
    return ArrowQuantV2(CONFIG).quantize_diffusion_model(source, tmp_path / "model", calibration=file), file


def test_a_fitting_calibration_is_used_for_every_layer(source, tmp_path):
    result, _ = quantize(source, tmp_path, statistics_of())
    assert [r.inputs.mode for r in result.layers if r.action == "quantized"] == ["time groups"] * 2
    assert result.warnings == ()


def test_a_calibration_of_another_width_names_file_and_layer(source, tmp_path):
    with pytest.raises(ShapeMismatchError, match=rf"inputs.parquet: .*{SECOND}.* has 64 columns, the weight 128"):
        quantize(source, tmp_path, statistics_of(columns=64))
    assert not list((tmp_path / "model").glob("0*.parquet"))


def test_a_calibration_of_another_model_is_no_calibration_at_all(source, tmp_path):
    with pytest.raises(
        MetadataError, match=r"inputs.parquet knows none of the 2 layers .*its first is 'blocks.0.weight'"
    ):
        quantize(source, tmp_path, statistics_of(["blocks.0.weight"]))


def test_a_layer_that_was_not_seen_is_named_and_gets_a_scale_per_token(source, tmp_path):
    result, _ = quantize(source, tmp_path, statistics_of([FIRST]))
    assert any(f"no inputs of 1 layers: {SECOND}" in warning for warning in result.warnings)
    assert any("scale per token" in warning and SECOND in warning for warning in result.warnings)
    modes = {r.name: (r.inputs.mode, r.output_sqnr) for r in result.layers if r.action == "quantized"}
    assert modes[FIRST][0] == "time groups"
    assert modes[SECOND] == ("per token", "not_measured")


@pytest.mark.parametrize("field", ["rows", "held_out", "channel_max"])
def test_rows_that_are_no_numbers_are_refused_with_layer_and_place(field):
    layer = statistics_of()[SECOND]
    values = np.array(getattr(layer, field))
    values[(1,) * values.ndim] = np.nan
    with pytest.raises(MetadataError, match=rf"{SECOND}.*{field} holds NaN or infinity, first at \(1"):
        dataclasses.replace(layer, **{field: values})


def test_a_timestep_beyond_the_models_is_refused():
    with pytest.raises(MetadataError, match="timestep 1200 is not in"):
        statistics_of(times=(1200, 500, 100))


def test_a_changed_file_is_refused_by_its_hash(source, tmp_path):
    file = tmp_path / "inputs.parquet"
    write_calibration(file, statistics_of())
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValidationError, match=r"inputs\.parquet"):
        ArrowQuantV2(CONFIG).quantize_diffusion_model(source, tmp_path / "model", calibration=file)
