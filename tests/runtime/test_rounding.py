"""Inputs are rounded on the grids of the NumPy path, dynamic or by the timestep."""

import numpy as np
import pytest

from arrowquant_nb.errors import MetadataError, ShapeMismatchError, ValidationError
from arrowquant_nb.quantizers import quantize_array
from arrowquant_nb.quantizers.activation_grid import round_rows, round_to_grid
from arrowquant_nb.quantizers.time_tables import LayerTimeTable, TimeGroupParams

torch = pytest.importorskip("torch")

from arrowquant_nb.runtime import InputFormat, QuantizedLinear, time_context  # noqa: E402
from arrowquant_nb.runtime.rounding import round_inputs  # noqa: E402

pytestmark = pytest.mark.torch

TABLE = LayerTimeTable.of_groups(
    "q.weight",
    (
        TimeGroupParams((0, 300), 0.0625, 30, 96),
        TimeGroupParams((300, 700), 0.03125, 128, 96),
        TimeGroupParams((700, 1000), 0.015625, 100, 96),
    ),
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_rounded_as_in_numpy(bits):
    x = random(2, 5, 96)
    x[0, 1] = 0
    x[1, 2] = np.abs(x[1, 2])
    got = round_inputs(InputFormat("per_token", bits), torch.from_numpy(x), "q")
    np.testing.assert_array_equal(got.numpy(), round_rows(x, bits))


@pytest.mark.parametrize("columns", [128, 150, 64, 40])
def test_groups_of_64_channels_have_their_own_grid_and_the_last_may_be_shorter(columns):
    x = random(3, columns)
    parts = [round_rows(x[:, i : i + 64], 8) for i in range(0, columns, 64)]
    got = round_inputs(InputFormat("per_group"), torch.from_numpy(x), "q")
    np.testing.assert_array_equal(got.numpy(), np.concatenate(parts, 1))


def test_static_grids_follow_the_timestep_and_outside_the_layer_is_named():
    x = random(4, 96)
    for time, group in ((0, 0), (299, 0), (300, 1), (699, 1), (700, 2), (1000, 2)):
        grid = TABLE.groups[group]
        with time_context(time):
            got = round_inputs(InputFormat("static", 8, TABLE), torch.from_numpy(x), "q")
        np.testing.assert_array_equal(got.numpy(), round_to_grid(x, grid.scale, grid.zero_point, 8))
    late = LayerTimeTable.of_groups("q.weight", TABLE.groups[1:])
    with time_context(200), pytest.raises(ValidationError, match=r"q\.weight.*300\.\.999.*at 200.*per_token"):
        round_inputs(InputFormat("static", 8, late), torch.from_numpy(x), "q")


def test_a_batch_of_several_timesteps_takes_a_grid_per_sample():
    x = random(4, 7, 96)
    with time_context([100, 900]):
        got = round_inputs(InputFormat("static", 8, TABLE), torch.from_numpy(x), "q").numpy()
    for rows, group in ((slice(0, 2), 0), (slice(2, 4), 2)):
        grid = TABLE.groups[group]
        np.testing.assert_array_equal(got[rows], round_to_grid(x[rows], grid.scale, grid.zero_point, 8))
    with time_context([100, 900, 900]), pytest.raises(ShapeMismatchError, match="3 samples"):
        round_inputs(InputFormat("static", 8, TABLE), torch.from_numpy(x), "q")


def test_without_a_timestep_the_layer_is_named_and_one_group_needs_none():
    x = torch.from_numpy(random(4, 96))
    with pytest.raises(ValidationError, match=r"q\.weight.*time_context"):
        round_inputs(InputFormat("static", 8, TABLE), x, "q.weight")
    single = LayerTimeTable.of_groups("q.weight", TABLE.groups[:1])
    round_inputs(InputFormat("static", 8, single), x, "q.weight")


@pytest.mark.parametrize("rule", ["per_token", "per_group", "static"])
@pytest.mark.parametrize(("bits", "group", "method"), [(8, 64, "uls"), (4, 32, "rtn"), (2, 16, "r2q"), (2, 64, "uls")])
@pytest.mark.parametrize("columns", [256, 200])
def test_a_layer_multiplies_the_rounded_inputs(rule, bits, group, method, columns):
    tensor = quantize_array(random(40, columns), bits, group, method)
    inputs = InputFormat(rule, 8, TABLE if rule == "static" else None)
    layer = QuantizedLinear.from_arrays(tensor, inputs=inputs, name="q")
    x = torch.from_numpy(random(3, 6, columns, seed=3))
    with time_context([0, 500, 999]):
        y = layer(x)
        expected = round_inputs(inputs, x, "q") @ torch.from_numpy(tensor.dequantize()).t()
    torch.testing.assert_close(y, expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("n_means", [1, 3])
@pytest.mark.parametrize("times", [[500], [100, 900]])
def test_centred_inputs_are_rounded_about_their_means_and_the_means_come_back(times, n_means):
    """One mean per time group, or the same at all times."""
    tensor = quantize_array(random(40, 96), 8, 32)
    means = random(n_means, 96, seed=9) + 3
    layer = QuantizedLinear.from_arrays(tensor, inputs=InputFormat("static", 8, TABLE), means=means, name="q")
    x = torch.from_numpy(random(4, 5, 96, seed=3) + 3)
    weight = torch.from_numpy(tensor.dequantize())
    with time_context(times):
        y = layer(x)
        for rows, time in ((slice(0, 2), times[0]), (slice(2, 4), times[-1])):
            group = {100: 0, 500: 1, 900: 2}[time]
            grid, mean = TABLE.groups[group], torch.from_numpy(means[group if n_means > 1 else 0])
            rounded = torch.from_numpy(round_to_grid((x[rows] - mean).numpy(), grid.scale, grid.zero_point, 8))
            torch.testing.assert_close(y[rows], (rounded + mean) @ weight.t(), rtol=2e-5, atol=2e-4)
    means = random(3, 96, seed=9)
    wrong = QuantizedLinear.from_arrays(tensor, inputs=InputFormat("per_token"), means=means, name="q")
    with pytest.raises(ShapeMismatchError, match="3 time groups"):
        wrong(x)


def test_formats_of_inputs_read_back_and_refuse_contradictions():
    for inputs in (InputFormat(), InputFormat("per_group", 4), InputFormat("static", 8, TABLE)):
        assert InputFormat.from_dict(inputs.to_dict()) == inputs
    for bad in ({"rule": "per_row"}, {"bit_width": 6}, {"rule": "static"}, {"table": TABLE.to_dict()}):
        with pytest.raises(MetadataError):
            InputFormat.from_dict(bad)
    with pytest.raises(MetadataError, match="4-bit code"):
        InputFormat("static", 4, TABLE)
