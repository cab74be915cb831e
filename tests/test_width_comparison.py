"""What each bit width costs the bundled sample: rows, order, and figures that agree with the models they name."""

import math

import numpy as np
import pytest

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig, ModelNotFoundError, samples
from arrowquant_nb.width_comparison import compare_widths


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("widths")
    finished = ArrowQuantV2(DiffusionQuantConfig(seed=3, calibration_samples=4)).quantize_diffusion_model(
        "digits-dit", folder / "model"
    )
    told = []
    comparison = compare_widths(
        "digits-dit", finished, n=2, n_images=3, seed=5, progress_callback=lambda *words: told.append(words)
    )
    return comparison, told, finished


def test_rows_go_from_the_original_to_two_bits(compared):
    comparison, _, _ = compared
    assert [m.name for m in comparison.models] == [
        "original", "INT8 (cloud)", "INT4 (local)", "INT2 (edge)", "INT2 (every layer)",
    ]  # fmt: skip


def test_fewer_bits_cost_more_decibels(compared):
    original, eight, four, two, two_throughout = compared[0].models
    assert original.network_sqnr_db == math.inf
    assert eight.network_sqnr_db > four.network_sqnr_db + 10
    assert four.network_sqnr_db > two.network_sqnr_db + 5
    assert eight.bits_per_weight > four.bits_per_weight > two.bits_per_weight > two_throughout.bits_per_weight
    # Groups of 16 with a byte each, and a pair of float16 for every 256 weights or the rest of a row of 128.
    assert 2 + 8 / 16 + 32 / 256 < two_throughout.bits_per_weight < 2 + 8 / 16 + 32 / 128


def test_images_start_from_the_same_noise(compared):
    original, eight, *_ = compared[0].models
    np.testing.assert_array_equal(original.images, samples.runnable("digits-dit").sample(np.arange(3), 5))
    assert np.abs(eight.images - original.images).max() < 0.1
    assert not np.array_equal(eight.images, original.images)


def test_a_run_with_a_profiles_settings_stands_in_for_it(compared):
    comparison, _, finished = compared
    assert comparison.models[2].size_mb == finished.payload_nbytes / 1e6


def test_progress_rises_from_nothing_to_all(compared):
    fractions = [fraction for _, fraction in compared[1]]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_the_table_and_the_labels_carry_the_figures(compared):
    comparison, _, _ = compared
    four = comparison.models[2]
    assert f"{four.network_sqnr_db:.1f} dB" in str(comparison)
    assert f"{four.network_sqnr_db:.1f} dB" in comparison._repr_html_()
    assert list(comparison.images)[2] == (
        f"INT4 (local)\nnetwork SQNR {four.network_sqnr_db:.1f} dB\n{four.bits_per_weight:.3g} bits/weight"
    )
    assert "bits per weight of the quantized tensors" in str(comparison)


def test_an_unknown_sample_is_named():
    with pytest.raises(ModelNotFoundError, match="digits-dit"):
        compare_widths("nosuch")
