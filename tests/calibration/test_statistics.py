"""Captures refuse what no layer's input could be, by name; hashes tell calibrations apart."""

import dataclasses
import pickle

import numpy as np
import pytest

from arrowquant_nb import ConfigurationError, MetadataError, ShapeMismatchError
from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings, model_hash


def changed(calibration, name="q.weight", **fields):
    return dataclasses.replace(calibration[name], **fields)


def poisoned(array, value):
    copy = np.array(array)
    copy[(0,) * copy.ndim] = value
    return copy


@pytest.mark.parametrize("field", ["hessian", "channel_min", "channel_max", "second_moment", "rows", "held_out"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_layer_field_and_place(calibration, field, value):
    array = poisoned(getattr(calibration["q.weight"], field), value)
    with pytest.raises(MetadataError, match=rf"'q\.weight': {field} holds NaN or infinity, first at \(0"):
        changed(calibration, **{field: array})


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("times", lambda a: a.astype(np.int32)),
        ("times", lambda a: a[:-1]),
        ("hessian", lambda a: a[:, :-1]),
        ("hessian", lambda a: a.astype(np.float32)),
        ("channel_min", lambda a: a[:, :-1]),
        ("histogram", lambda a: a[:, :100]),
        ("second_moment", lambda a: a[:-1]),
        ("rows", lambda a: a[..., :-1]),
        ("rows", lambda a: a[:, :0]),
        ("held_out", lambda a: a[:, 0]),
        ("held_out", lambda a: a.tolist()),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_with_layer_and_field(calibration, field, make):
    with pytest.raises(ShapeMismatchError, match=r"'q\.weight'"):
        changed(calibration, **{field: make(getattr(calibration["q.weight"], field))})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"times": np.array([5, 5, 3, 2, 1])}, "fall strictly"),
        ({"times": np.array([1, 2, 3, 4, 5])}, "fall strictly"),
        ({"times": np.array([5, 4, 3, 2, -1])}, "not be negative"),
        ({"histogram_range": (1.0, 1.0)}, "not a finite range"),
        ({"histogram_range": (0.0, float("nan"))}, "not a finite range"),
        ({"n_rows": 4}, "less than one row"),
        ({"histogram": np.zeros((5, 2048), np.int64)}, "empty"),
        ({"second_moment": np.full(5, -1.0)}, "cannot be negative"),
    ],
)
def test_values_that_cannot_be_are_refused(calibration, fields, message):
    with pytest.raises(MetadataError, match=message):
        changed(calibration, **fields)


def test_a_hessian_must_be_symmetric_with_no_negative_diagonal_and_a_range_in_order(calibration):
    layer = calibration["q.weight"]
    with pytest.raises(MetadataError, match="not symmetric"):
        changed(calibration, hessian=np.triu(layer.hessian))
    with pytest.raises(MetadataError, match="diagonal"):
        changed(calibration, hessian=-layer.hessian)
    with pytest.raises(MetadataError, match="above its channel_max"):
        changed(calibration, channel_min=layer.channel_max + 1)


def test_arrays_are_read_only_and_the_callers_own_stays_writable(calibration):
    own = np.array(calibration["q.weight"].rows)
    layer = changed(calibration, rows=own)
    with pytest.raises(ValueError, match="read-only"):
        layer.rows[0] = 0
    own[0] = 1


def test_a_calibration_of_mixed_steps_names_or_times_is_refused(calibration):
    def made(settings=calibration.settings, **layers):
        return Calibration({**calibration.layers, **layers}, "capture", settings, "h")

    with pytest.raises(MetadataError, match="filed under"):
        made(other=calibration["q.weight"])
    shifted = changed(calibration, times=calibration["q.weight"].times - 1)
    with pytest.raises(MetadataError, match=r"'q\.weight' has other timesteps than that of 'patch\.weight'"):
        made(**{"q.weight": shifted})
    with pytest.raises(MetadataError, match=r"timestep 999 is not in 0\.\.499"):
        made(CalibrationSettings(n_timesteps=500))
    for layers, source in (({}, "capture"), (calibration.layers, "guess")):
        with pytest.raises(MetadataError, match="sources"):
            Calibration(layers, source, calibration.settings, "h")


@pytest.mark.parametrize(
    "field", ["n_samples", "rows_per_step", "held_out_rows_per_step", "batch_samples", "n_timesteps", "n_steps"]
)
@pytest.mark.parametrize("value", [0, -1, 1 << 40, 1.5, True, "8"])
def test_settings_out_of_range_are_refused_with_their_name(field, value):
    with pytest.raises(ConfigurationError, match=f"{field} is"):
        CalibrationSettings(**{field: value})


def test_a_layer_of_another_width_or_that_is_not_there_is_an_error(calibration):
    assert calibration.check_layer("q.weight", 6) is calibration["q.weight"]
    with pytest.raises(ShapeMismatchError, match=r"'q\.weight' has 6 columns, the weight 8"):
        calibration.check_layer("q.weight", 8)
    with pytest.raises(MetadataError, match="no layer 'v'"):
        calibration.check_layer("v", 6)


def test_the_data_hash_sees_every_array_and_the_key_every_setting(calibration):
    layer = calibration["time.weight"]
    hashes = {calibration.data_hash}
    for fields in (
        {"rows": layer.rows + 1},
        {"held_out": layer.held_out + 1},
        {"hessian": layer.hessian * 2},
        {"n_rows": layer.n_rows + 1},
        {"histogram_range": (layer.histogram_range[0], layer.histogram_range[1] + 1)},
    ):
        other = {**calibration.layers, "time.weight": dataclasses.replace(layer, **fields)}
        hashes.add(Calibration(other, "capture", calibration.settings, calibration.model_hash).data_hash)
    assert len(hashes) == 6
    keys = {calibration.key}
    for field in dataclasses.fields(CalibrationSettings):
        settings = dataclasses.replace(calibration.settings, **{field.name: 999 + (field.name == "n_timesteps")})
        keys.add(dataclasses.replace(calibration, settings=settings).key)
    assert len(keys) == 1 + len(dataclasses.fields(CalibrationSettings)) - 1  # n_timesteps was 1000 already
    assert dataclasses.replace(calibration, model_hash="other").key not in keys


def test_the_model_hash_sees_names_values_shapes_and_dtypes_and_no_order():
    a = {"x": np.arange(6, dtype=np.float32), "y": np.zeros((), np.float16)}
    same = {"y": a["y"], "x": a["x"]}
    assert model_hash(a) == model_hash(same)
    others = [
        {"z": a["x"], "y": a["y"]}, {**a, "x": a["x"] + 1}, {**a, "x": a["x"].reshape(2, 3)},
        {**a, "x": a["x"].astype(np.float64)}, {"x": a["x"]},
    ]  # fmt: skip
    assert len({model_hash(m) for m in (a, *others)}) == 6


def test_a_layer_capture_pickles(calibration):
    layer = pickle.loads(pickle.dumps(calibration["q.weight"]))
    assert np.array_equal(layer.hessian, calibration["q.weight"].hessian)
