"""Capture against a plain oracle that looks at the same trajectories; sharing, held-out rows, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from tiny_model import SETTINGS, TIMES, Tiny, inputs_of

from arrowquant_nb import ConfigurationError, MetadataError, ShapeMismatchError, samples
from arrowquant_nb.calibration.accumulation import InputAccumulator, RowSample
from arrowquant_nb.calibration.capture import capture
from arrowquant_nb.calibration.scratch import Scratch
from arrowquant_nb.calibration.statistics import CalibrationSettings
from arrowquant_nb.samples.runnable import Step


def rows_of(array):
    return {row.tobytes() for row in array.reshape(-1, array.shape[-1])}


def seen(asked, which):
    """Input rows of the trajectories that the capture asked for: the fit ones come first."""
    model = Tiny()
    n_fit = -(-SETTINGS.n_samples // SETTINGS.batch_samples)
    runs = [asked[:n_fit], asked[n_fit:]][which]
    return inputs_of(model, [step for n, seed in runs for step in model.trajectories(n, seed)])


@pytest.fixture(scope="module")
def captured():
    model = Tiny()
    calibration = capture(model, SETTINGS)
    return calibration, seen(model.asked, 0), seen(model.asked, 1)


def test_the_hessian_is_the_mean_over_steps_of_the_mean_over_rows(captured):
    calibration, fit, _ = captured
    assert list(calibration) == list(Tiny().layers())
    for name, layer in calibration.items():
        products = [fit[name, t].astype(float).T @ fit[name, t].astype(float) / len(fit[name, t]) for t in TIMES]
        np.testing.assert_allclose(layer.hessian, np.mean(products, 0), rtol=1e-12, atol=1e-15)
        assert layer.n_rows == sum(len(fit[name, t]) for t in TIMES)


def test_ranges_moments_and_histograms_are_those_of_all_fit_rows(captured):
    calibration, fit, _ = captured
    for name, layer in calibration.items():
        assert layer.times.tolist() == list(TIMES)
        for i, t in enumerate(TIMES):
            rows = fit[name, t]
            assert np.array_equal(layer.channel_min[i], rows.min(0))
            assert np.array_equal(layer.channel_max[i], rows.max(0))
            assert layer.second_moment[i] == pytest.approx(np.mean(rows.astype(float) ** 2))
            low, high = layer.histogram_range
            assert low <= rows.min() <= rows.max() <= high
            assert layer.histogram[i].sum() == rows.size
            assert np.abs(layer.histogram[i] - np.histogram(rows, 2048, (low, high))[0]).sum() <= 2


def test_kept_rows_are_of_their_step_and_as_many_at_every_step(captured):
    calibration, fit, held_out = captured
    for name, layer in calibration.items():
        n = 2 if name == "time.weight" else 5
        assert layer.rows.shape == (len(TIMES), n, layer.columns)
        for i, t in enumerate(TIMES):
            assert rows_of(layer.rows[i]) <= rows_of(fit[name, t])
            assert rows_of(layer.held_out[i]) <= rows_of(held_out[name, t])


def test_held_out_rows_are_of_other_trajectories(captured):
    calibration, fit, _ = captured
    for name, layer in calibration.items():
        if name != "time.weight":  # what depends on the timestep alone is the same for every sample
            assert not rows_of(layer.held_out) & set().union(*(rows_of(fit[name, t]) for t in TIMES))


def test_layers_with_the_same_input_share_its_arrays(captured):
    calibration, _, _ = captured
    assert calibration.inputs["q.weight"] == ("q.weight", "k.weight")
    assert [len(names) for names in calibration.inputs.values()] == [1, 2, 1, 1]
    q, k = calibration["q.weight"], calibration["k.weight"]
    assert np.shares_memory(q.hessian, k.hessian)
    assert np.shares_memory(q.held_out, k.held_out)
    assert (k.name, k.input_name) == ("k.weight", "q.weight")


def test_as_many_trajectories_as_asked_for_are_followed_in_batches(tiny):
    capture(tiny, SETTINGS)
    assert [n for n, _ in tiny.asked] == [4, 3, 1]
    assert len({seed for _, seed in tiny.asked}) == 3


def test_a_model_that_divides_its_data_gives_held_out_rows_from_the_other_part():
    class Divided(Tiny):
        def trajectories(self, n, seed, split="calibration"):
            self.splits = [*getattr(self, "splits", []), split]
            return super().trajectories(n, seed)

    model = Divided()
    capture(model, SETTINGS)
    assert model.splits == ["calibration", "calibration", "evaluation"]


class Watched(Tiny):
    """Runs itself to find its steps, and lets these calls be watched."""

    def __init__(self, *args):
        super().__init__(*args)
        self.forwards = 0

    def trajectories(self, n, seed, linear=None):
        for step in super().trajectories(n, seed):
            self.forward(step, linear)
            yield step

    def forward(self, step, linear=None):
        self.forwards += 1
        return super().forward(step, linear)


def test_a_model_that_can_be_watched_runs_every_call_once_and_gives_the_same_statistics(captured):
    model = Watched()
    watched, (twice, _, _) = capture(model, SETTINGS), captured
    assert model.forwards == 3 * len(TIMES)
    assert watched.inputs == twice.inputs
    for name, layer in watched.items():
        for field in ("times", "hessian", "channel_min", "channel_max", "second_moment", "rows", "held_out"):
            assert np.array_equal(getattr(layer, field), getattr(twice[name], field)), field
        low, high = layer.histogram_range
        assert low <= layer.channel_min.min() <= layer.channel_max.max() <= high
        assert (layer.histogram.sum(1) == twice[name].histogram.sum(1)).all()
    assert list(capture(Watched(), SETTINGS, ["out.weight"])) == ["out.weight"]


def test_a_watched_model_that_never_uses_a_layer_is_an_error():
    class Idle(Watched):
        def layers(self):
            return {**super().layers(), "idle.weight": (2, 2)}

    with pytest.raises(MetadataError, match=r"never used its layer 'idle.weight'"):
        capture(Idle(), SETTINGS)


def test_equal_seeds_give_equal_bytes_and_others_do_not(calibration):
    assert capture(Tiny(), SETTINGS).data_hash == calibration.data_hash
    other = CalibrationSettings(**{**SETTINGS.to_dict(), "seed": 1})
    assert capture(Tiny(), other).data_hash != calibration.data_hash


def test_the_bundled_model_gives_the_same_bytes_for_any_number_of_threads():
    model = samples.runnable("digits-dit")
    names = ["transformer_blocks.0.attn1.to_q.weight", "transformer_blocks.3.ff.net.2.weight", "proj_out_2.weight"]
    few = CalibrationSettings(n_samples=1, rows_per_step=8, held_out_rows_per_step=8)
    hashes = set()
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, user_api="blas"):
            calibration = capture(model, few, names)
        hashes.add(calibration.data_hash)
    assert len(hashes) == 1
    assert list(calibration) == names
    assert calibration[names[1]].columns == 512
    assert calibration[names[0]].n_steps == 25


def test_progress_rises_to_one_and_an_exception_in_it_stops_the_capture(tiny):
    fractions = []
    capture(tiny, SETTINGS, progress=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) == 3 * len(TIMES) + 1

    def stop(_fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(tiny, SETTINGS, progress=stop)


def test_some_layers_only_are_recorded_when_named_and_an_unknown_name_is_an_error(tiny):
    only = capture(tiny, SETTINGS, ["k.weight", "out.weight"])
    assert list(only) == ["k.weight", "out.weight"]
    assert only["k.weight"].input_name == "k.weight"
    for names in (["k.weight", "v.weight"], []):
        with pytest.raises(ConfigurationError, match="names no layer of the model"):
            capture(tiny, SETTINGS, names)


def hooked(change):
    """A model whose hook calls are changed on the way."""

    class Changed(Tiny):
        def forward(self, step, linear=None):
            def hook(name, x, time):
                return (linear or self.linear)(*change(name, np.array(x), time))

            return super().forward(step, hook)

    return Changed()


def test_an_input_that_is_not_finite_is_refused_with_layer_and_timestep():
    def poison(name, x, time):
        if (name, time) == ("out.weight", 399):
            x[0, 0, 0] = np.nan
        return name, x, time

    with pytest.raises(MetadataError, match=r"'out\.weight': its input holds NaN or infinity at timestep 399"):
        capture(hooked(poison), SETTINGS)


def test_an_input_of_another_width_than_the_weight_is_refused():
    with pytest.raises(ShapeMismatchError, match=r"'patch\.weight'.*4 columns"):
        capture(hooked(lambda name, x, time: (name, x[..., :-1] if name == "patch.weight" else x, time)), SETTINGS)


def test_inputs_that_are_shared_at_first_only_are_an_error():
    def part(name, x, time):
        return name, x + 1 if (name, time) == ("k.weight", 199) else x, time

    with pytest.raises(MetadataError, match=r"'k\.weight' had the input of 'q\.weight' at first"):
        capture(hooked(part), SETTINGS)


def test_a_layer_that_is_never_used_is_an_error():
    class Idle(Tiny):
        def layers(self):
            return {**super().layers(), "idle.weight": (2, 2)}

    with pytest.raises(MetadataError, match=r"never used its layer 'idle\.weight'"):
        capture(Idle(), SETTINGS)


def test_timesteps_must_be_training_timesteps_and_the_same_for_every_seed():
    with pytest.raises(MetadataError, match=r"timestep 1000 is not in 0\.\.999"):
        capture(Tiny(times=(999, 1000)), SETTINGS)

    class Wandering(Tiny):
        def trajectories(self, n, seed):
            self.times = tuple(t - seed % 100 for t in TIMES)
            return super().trajectories(n, seed)

    with pytest.raises(MetadataError, match="the same timesteps whatever the seed"):
        capture(Wandering(), SETTINGS)
    with pytest.raises(MetadataError, match="no steps"):
        capture(Tiny(times=()), SETTINGS)


def test_a_timestep_that_comes_twice_is_one_step_with_the_rows_of_both():
    once, twice = capture(Tiny(), SETTINGS), capture(Tiny(times=(*TIMES, TIMES[0])), SETTINGS)
    assert twice["q.weight"].times.tolist() == list(TIMES)
    assert twice["q.weight"].n_rows == once["q.weight"].n_rows * 6 // 5


BLOCKS = st.lists(
    st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.floats(-1e4, 1e4, width=32)), min_size=1, max_size=6),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=40)
@given(BLOCKS, st.floats(-10, 10, width=32), st.floats(-10, 10, width=32))
def test_widening_the_range_keeps_every_count_and_each_value_in_its_bin(blocks, a, b):
    accumulator = InputAccumulator("x", 2, min(a, b), max(a, b), 4, 4)
    for number, block in enumerate(blocks):
        rows = np.array(block, np.float32)
        accumulator.add(number % 2, rows, 1.0, np.zeros(len(rows)))
        accumulator.hold_out(number % 2, rows, np.zeros(len(rows)))
    arrays = accumulator.finish()
    low, high = arrays["histogram_range"]
    for i, time in enumerate(arrays["times"].tolist()):
        values = np.concatenate([np.array(block, np.float32).ravel() for block in blocks[time::2]]).astype(float)
        assert arrays["histogram"][i].sum() == len(values)
        below = np.cumsum(arrays["histogram"][i])[:-1]
        width = (high - low) / 2048
        edges = low + width * np.arange(1, 2048)
        assert (below >= np.searchsorted(np.sort(values), edges - 1e-6 * width)).all()
        assert (below <= np.searchsorted(np.sort(values), edges + 1e-6 * width)).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 99))
def test_which_rows_are_kept_does_not_depend_on_how_they_come_in(sizes, n_rows, seed):
    rows = np.arange(2 * sum(sizes), dtype=np.float32).reshape(-1, 2)
    keys = np.random.default_rng(seed).random(len(rows))
    whole, parts = RowSample(n_rows, 2, Scratch()), RowSample(n_rows, 2, Scratch(0))
    whole.add(rows, keys)
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        parts.add(rows[start : start + size], keys[start : start + size])
    assert np.array_equal(whole.rows, parts.rows)
    assert len(whole.rows) == min(n_rows, len(rows))


def test_every_row_is_kept_equally_often():
    rows = np.arange(20, dtype=np.float32)[:, None]
    counts = np.zeros(20)
    for seed in range(2000):
        sample = RowSample(5, 1, Scratch())
        keys = np.random.default_rng(seed).random(20)
        sample.add(rows[:12], keys[:12])
        sample.add(rows[12:], keys[12:])
        counts[sample.rows[:, 0].astype(int)] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 0.75)


def test_inputs_are_not_changed_by_looking_at_them(tiny):
    step = next(iter(tiny.trajectories(2, 0)))
    before = {name: values.copy() for name, values in step.inputs.items()}
    expected = tiny.forward(step)

    class One(Tiny):
        def trajectories(self, n, seed):
            return [Step(before, 999), Step(before, 500)]

    capture(One(), SETTINGS)
    assert all(np.array_equal(before[name], values) for name, values in step.inputs.items())
    assert np.array_equal(tiny.forward(step), expected)
