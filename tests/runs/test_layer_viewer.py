"""One layer from near, against the same figures worked out from whole arrays."""

from pathlib import Path

import numpy as np
import pytest

from arrowquant_nb.api import open_checkpoint, open_quantized
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import MetadataError, ModelNotFoundError
from arrowquant_nb.runs.layer_viewer import LayerViewer, _rows_to_see, _runs_of
from arrowquant_nb.storage.quantized import open_committed

NAME = "transformer_blocks.0.ff.net.2.weight"


def arrays(models):
    with open_checkpoint(models.dit) as source, open_quantized(models.quantized()) as model:
        before = np.array(source.read_rows(NAME, 0, source.entries[NAME].rows), np.float32)
        return before, np.asarray(model.dequantize(NAME))


@pytest.fixture(scope="module")
def view(models):
    with LayerViewer(models.dit, models.quantized(), DiffusionQuantConfig()) as viewer:
        return viewer.view(NAME)


def test_histograms_count_every_weight_before_and_after(models, view):
    before, after = arrays(models)
    assert view.before.sum() == view.after.sum() == before.size
    assert np.array_equal(view.before, np.histogram(before, view.edges)[0])
    assert np.array_equal(view.after, np.histogram(after, view.edges)[0])
    assert view.edges[0] <= min(before.min(), after.min())
    assert view.edges[-1] >= max(before.max(), after.max())


def test_tiles_hold_mean_and_largest_error_of_their_rows_and_columns(models, view):
    before, after = arrays(models)
    error = np.abs(before - after)
    assert view.tile_mean.shape == (16, 48)
    for i, j in ((0, 0), (7, 31), (15, 47)):
        rows, columns = (slice(e[k], e[k + 1]) for e, k in ((view.row_edges, i), (view.column_edges, j)))
        assert view.tile_mean[i, j] == pytest.approx(error[rows, columns].mean(), rel=1e-5)
        assert view.tile_max[i, j] == error[rows, columns].max()


def test_scales_are_those_of_the_stored_groups(models):
    folder = models.quantized(scale_format="float16", group_size=32)
    with LayerViewer(models.dit, folder, DiffusionQuantConfig()) as viewer, open_quantized(folder) as model:
        view = viewer.view(NAME)
        tiles = [tile for _, tile in model[NAME].tiles()]
        stored = np.sort(np.abs(np.concatenate([t.scales.astype(np.float32).ravel() for t in tiles])))
    assert view.n_groups == stored.size
    assert (view.scales[0], view.scales[-1]) == (stored[0], stored[-1])
    assert len(view.scales) == 200
    assert (np.diff(view.scales) >= 0).all()


def test_scales_of_integers_are_what_the_values_are_apart(models, view):
    """In format k: every value of a group is a whole number of its step above the smallest, at most 15."""
    _, after = arrays(models)
    groups = after.reshape(-1, 32)
    assert view.n_groups == len(groups)
    largest = (groups.max(1) - groups.min(1)).max() / 15
    assert view.scales[-1] == pytest.approx(largest, rel=1e-6)


def test_outliers_are_counted_against_the_spread_of_their_row(models, view):
    before, _ = arrays(models)
    beyond = np.abs(before) > 6 * before.std(axis=1, keepdims=True)
    assert view.outlier_share == pytest.approx(beyond.mean())
    assert view.outlier_groups == beyond.reshape(len(before), -1, 64).any(axis=2).sum()


def test_without_calibration_there_are_no_ranges(view):
    assert view.ranges is None


def test_a_row_that_the_groups_do_not_divide_has_a_tail(models):
    with LayerViewer(models.dit, models.quantized(), DiffusionQuantConfig()) as viewer:
        assert viewer.view("transformer_blocks.0.attn2.to_k.weight").tail == 200 % 64


def test_with_calibration_groups_have_their_range_and_their_output(sample_run):
    config = DiffusionQuantConfig(calibration_samples=4, num_time_groups=5)
    with LayerViewer("digits-dit", sample_run, config) as viewer:
        view = viewer.view(NAME)
        groups = view.ranges.groups
        assert len(groups) == 5
        assert groups[0].first_time > groups[-1].last_time
        assert min(view.ranges.low) == min(g.low for g in groups)
        assert max(view.ranges.high) == max(g.high for g in groups)
        assert all(20 < g.sqnr_db < 60 for g in groups)


def test_the_worst_group_is_the_one_the_run_reported(sample_run):
    from arrowquant_nb.ui.replay import EventLog
    from arrowquant_nb.ui.run_state import RunState

    state = RunState.of(EventLog(sample_run).new_events())
    config = DiffusionQuantConfig.from_dict(dict(state.config))
    with LayerViewer("digits-dit", sample_run, config) as viewer:
        found = min(g.sqnr_db for g in viewer.view(NAME).ranges.groups)
    assert found == pytest.approx(state.layers[NAME].worst_db, abs=1e-6)


def test_a_kept_or_unknown_tensor_is_refused(models):
    with LayerViewer(models.dit, models.quantized(), DiffusionQuantConfig()) as viewer:
        for name in ("pos_embed.proj.weight", "no.such.weight"):
            with pytest.raises(MetadataError, match="not among the quantized layers"):
                viewer.view(name)


def test_what_a_run_committed_can_be_opened_before_it_has_finished(models, tmp_path):
    import shutil

    folder = shutil.copytree(models.quantized(), tmp_path / "cut")
    (folder / "manifest.json").unlink()
    with open_committed(folder) as model:
        assert model[NAME].bit_width == 4
    with pytest.raises(ModelNotFoundError, match="no run of arrowquant_nb"):
        open_committed(Path(tmp_path))


def test_a_large_layer_is_seen_in_stretches_over_its_whole_height():
    rows = _rows_to_see(100_000, 4096)
    assert len(rows) <= (1 << 22) // 4096
    assert (rows[0], rows[-1]) == (0, 99_999)
    assert all(len(run) % 16 == 0 for run in _runs_of(rows))
    assert np.array_equal(_rows_to_see(100, 64), np.arange(100))
