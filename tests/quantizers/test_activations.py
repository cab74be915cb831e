"""The activation hook: what it rounds, what it leaves alone, and what time groups gain on a trained model."""

import numpy as np
import pytest

from arrowquant_nb import ConfigurationError, ShapeMismatchError, TimeAwareQuantizer, ValidationError, samples
from arrowquant_nb.quantizers.activation_fit import fit_input, group_means
from arrowquant_nb.quantizers.activation_grid import round_rows, round_to_grid
from arrowquant_nb.quantizers.activation_ranges import StepRanges
from arrowquant_nb.quantizers.activations import ActivationQuantizer, HadamardRotation, InputTransform
from arrowquant_nb.quantizers.rotation import rotate
from arrowquant_nb.samples.divergences import decibels
from arrowquant_nb.samples.evaluation import Recording
from arrowquant_nb.samples.hooked import HookedModel
from tests.captured import capture

pytestmark = pytest.mark.usefixtures("one_thread")
LAYER = "a.weight"


class Recorder:
    """A hook that keeps what reaches the product."""

    def __init__(self):
        self.seen = []

    def __call__(self, name, x, time):
        self.seen.append((name, time, x))
        return x


class Flip:
    """An orthogonal mixing that is easily followed: the channels in reverse, signs changed."""

    def rotate(self, x):
        return -x[..., ::-1]

    def rotate_back(self, x):
        return -x[..., ::-1]


def fitted(n_groups=2, **options):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4, 60, 8)).astype(np.float32) * np.float32([1, 1, 9, 9])[:, None, None] + options.pop(
        "offset", np.float32(0)
    )
    times = np.array([100, 200, 800, 900])
    fit = fit_input(TimeAwareQuantizer(4, n_groups), LAYER, times, rows.min(1), rows.max(1), rows, **options)
    return fit, rows


def hook_of(fit, product=None):
    tables = TimeAwareQuantizer(4).metadata([fit.table])
    return ActivationQuantizer(product or Recorder(), 4, frozenset([LAYER]), tables, {LAYER: fit.transform})


def test_each_step_is_rounded_on_the_grid_of_its_group():
    fit, rows = fitted()
    assert len(fit.table.groups) == 2
    hook = hook_of(fit)
    for time, x in ((100, rows[0]), (900, rows[3]), (0, rows[0]), (499, rows[1]), (500, rows[2])):
        group = fit.table.groups[0 if time < 500 else 1]
        np.testing.assert_array_equal(hook(LAYER, x, time), round_to_grid(x, group.scale, group.zero_point, 4))
        assert hook.product.seen[-1][:2] == (LAYER, time)


def test_other_layers_pass_untouched():
    fit, rows = fitted()
    assert hook_of(fit)("norm1.linear.weight", rows, 100) is rows


def test_without_tables_every_row_has_its_own_grid():
    _, rows = fitted()
    hook = ActivationQuantizer(Recorder(), 4, frozenset([LAYER]))
    np.testing.assert_array_equal(hook(LAYER, rows, 7), round_rows(rows, 4))


def test_the_callers_input_is_not_written():
    fit, rows = fitted(equalization=np.full(8, 2, np.float32), smoothing=True, offset=np.float32(3))
    rows.flags.writeable = False
    hook_of(fit)(LAYER, rows[0], 100)
    ActivationQuantizer(Recorder(), 8, frozenset([LAYER]))(LAYER, rows[0], 100)


def test_transforms_are_undone_in_reverse_order():
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    scales = np.exp2(np.arange(8) - 4).astype(np.float32)
    transform = InputTransform(scales, np.arange(8, dtype=np.float32)[None], Flip())
    np.testing.assert_allclose(transform.apply(x), -(x / scales - np.arange(8))[:, ::-1], rtol=1e-6)
    np.testing.assert_allclose(transform.undo(transform.apply(x)), x, rtol=1e-5, atol=1e-5)


def test_inputs_are_rotated_as_weights_of_the_same_seed_are():
    rng = np.random.default_rng(2)
    weight, x = (rng.standard_normal((n, 64)).astype(np.float32) for n in (5, 6))
    turned = weight.copy()
    rotate(turned, 11)
    rotation = HadamardRotation(11)
    np.testing.assert_allclose(rotation.rotate(x[None])[0] @ turned.T, x @ weight.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rotation.rotate_back(rotation.rotate(x)), x, rtol=1e-5, atol=1e-6)


def test_centring_is_kept_where_channels_have_offsets_and_dropped_where_not():
    offsets = np.float32([40, -40, 20, -20, 0, 0, 30, -30])
    fit, rows = fitted(smoothing=True, offset=offsets)
    assert fit.smoothing_gain_db > 3
    assert len(fit.transform.means) in (1, len(fit.table.groups))
    with_means = np.mean((hook_of(fit)(LAYER, rows[0], 100) - rows[0]) ** 2)
    plain, _ = fitted(offset=offsets)
    assert with_means < np.mean((hook_of(plain)(LAYER, rows[0], 100) - rows[0]) ** 2) / 2
    without, _ = fitted(smoothing=True)
    assert without.transform.means is None
    assert without.smoothing_gain_db == 0


def test_group_means_are_those_of_the_steps():
    rows = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    np.testing.assert_array_equal(group_means(rows, [(0, 1), (1, 3)]), [[2, 3, 4, 5], [14, 15, 16, 17]])


def test_a_rotated_input_gets_the_ranges_of_the_rotated_rows():
    fit, rows = fitted(rotation=Flip())
    low = -max(rows[:2].max(), 0)
    group = fit.table.groups[0]
    assert -group.zero_point * group.scale == pytest.approx(low, rel=0.2)
    error = hook_of(fit)(LAYER, rows[0], 100) - rows[0]
    assert np.abs(error).max() <= group.scale * 1.01


def test_the_order_of_the_steps_does_not_matter():
    fit, rows = fitted(smoothing=True, offset=np.float32([40, -40, 20, -20, 0, 0, 30, -30]))
    down = rows[::-1]
    again = fit_input(
        TimeAwareQuantizer(4, 2), LAYER, np.array([900, 800, 200, 100]), down.min(1), down.max(1), down, smoothing=True
    )
    assert again.table == fit.table
    np.testing.assert_array_equal(again.transform.means, fit.transform.means)


def test_what_does_not_go_together_is_refused():
    fit, _ = fitted()
    tables = TimeAwareQuantizer(4).metadata([fit.table])
    with pytest.raises(ValidationError, match=r"b\.weight: there is no time table"):
        ActivationQuantizer(Recorder(), 4, frozenset([LAYER, "b.weight"]), tables)
    with pytest.raises(ConfigurationError, match="4 bits"):
        ActivationQuantizer(Recorder(), 8, frozenset([LAYER]), tables)
    with pytest.raises(ConfigurationError, match="4, 8"):
        ActivationQuantizer(Recorder(), 3, frozenset([LAYER]))
    means = {LAYER: InputTransform(means=np.zeros((3, 8), np.float32))}
    with pytest.raises(ShapeMismatchError, match=r"a\.weight: means of 3"):
        ActivationQuantizer(Recorder(), 4, frozenset([LAYER]), tables, means)


@pytest.fixture(scope="module")
def measured(one_thread):
    """Network SQNR in dB on a trained model, by bits and mode; float weights."""
    model = samples.runnable("digits-dit")
    layers = [name for name in model.layers() if ".attn1." in name or ".ff.net." in name]
    captured = capture(model, layers, n=3, n_rows=48)
    recording = Recording.of(model, 2, seed=7)
    every_fourth = slice(None, None, 4)

    def sqnr_db(hook):
        power = error = 0.0
        hooked = HookedModel(model, hook)
        for step, output in zip(recording.steps[every_fourth], recording.outputs[every_fourth], strict=True):
            power += float(np.sum(output.astype(np.float64) ** 2))
            error += float(np.sum((hooked.forward(step).astype(np.float64) - output) ** 2))
        return decibels(power, error)

    def with_tables(bits, n_groups, grouping="optimal"):
        quantizer = TimeAwareQuantizer(bits, n_groups, grouping=grouping)
        tables = [
            quantizer.layer_table(StepRanges.of_rows(layer, t, rows, low, high), rows.shape[-1])
            for layer, (t, low, high, rows) in captured.items()
        ]
        return sqnr_db(ActivationQuantizer(model.linear, bits, frozenset(layers), quantizer.metadata(tables)))

    found = {(bits, mode): with_tables(bits, mode) for bits in (8, 4) for mode in (1, 4)}
    found |= {(bits, "rows"): sqnr_db(ActivationQuantizer(model.linear, bits, frozenset(layers))) for bits in (8, 4)}
    return found


@pytest.mark.parametrize("bits", [8, 4])
def test_time_groups_gain_and_rows_of_their_own_gain_more(measured, bits):
    assert measured[bits, 4] >= measured[bits, 1] + 2.5
    assert measured[bits, "rows"] >= measured[bits, 4] + 3


def test_eight_bits_are_better_than_four(measured):
    for mode in (1, 4, "rows"):
        assert measured[8, mode] >= measured[4, mode] + 18
