"""The cache runs a model once, believes no damaged entry, and says so."""

import dataclasses

import pytest
from tiny_model import SETTINGS, Tiny

from arrowquant_nb.calibration.cache import cache_folder, cached_capture
from arrowquant_nb.calibration.synthetic import calibrate_on_noise


def entries(folder):
    return sorted(folder.iterdir())


def test_the_same_model_and_settings_run_once(tmp_path):
    first = cached_capture(Tiny(), SETTINGS, folder=tmp_path / "cache")
    model, fractions = Tiny(), []
    second = cached_capture(model, SETTINGS, progress=fractions.append, folder=tmp_path / "cache")
    assert (first.reused, second.reused) == (False, True)
    assert first.warnings == second.warnings == ()
    assert first.calibration.data_hash == second.calibration.data_hash
    assert model.asked == []
    assert fractions == [1.0]


def test_another_model_setting_layer_or_source_is_another_entry(tmp_path):
    runs = [
        cached_capture(Tiny(), SETTINGS, folder=tmp_path),
        cached_capture(Tiny(seed=1), SETTINGS, folder=tmp_path),
        cached_capture(Tiny(), dataclasses.replace(SETTINGS, n_samples=6), folder=tmp_path),
        cached_capture(Tiny(), SETTINGS, ["q.weight"], folder=tmp_path),
        cached_capture(Tiny(), SETTINGS, folder=tmp_path, source="synthetic", run=calibrate_on_noise),
    ]
    assert not any(run.reused for run in runs)
    assert len(entries(tmp_path)) == 5
    again = cached_capture(Tiny(), SETTINGS, folder=tmp_path, source="synthetic", run=calibrate_on_noise)
    assert again.reused
    assert again.calibration.source == "synthetic"


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"", lambda b: b.replace(b"q.weight", b"p.weight")])
def test_a_damaged_entry_is_not_used_but_made_again_with_a_warning(tmp_path, damage):
    first = cached_capture(Tiny(), SETTINGS, folder=tmp_path)
    (entry,) = entries(tmp_path)
    entry.write_bytes(damage(entry.read_bytes()))
    second = cached_capture(Tiny(), SETTINGS, folder=tmp_path)
    assert not second.reused
    assert second.calibration.data_hash == first.calibration.data_hash
    assert len(second.warnings) == 1
    assert entry.name in second.warnings[0]
    assert cached_capture(Tiny(), SETTINGS, folder=tmp_path).reused


def test_an_entry_under_another_ones_name_is_not_used(tmp_path):
    cached_capture(Tiny(), SETTINGS, folder=tmp_path)
    (entry,) = entries(tmp_path)
    cached_capture(Tiny(seed=1), SETTINGS, folder=tmp_path)
    (other,) = (e for e in entries(tmp_path) if e != entry)
    other.replace(entry)
    found = cached_capture(Tiny(), SETTINGS, folder=tmp_path)
    assert not found.reused
    assert "another calibration than its name says" in found.warnings[0]


def test_a_folder_that_cannot_be_written_costs_the_cache_not_the_calibration(tmp_path):
    (tmp_path / "file").write_text("")
    found = cached_capture(Tiny(), SETTINGS, folder=tmp_path / "file")
    assert len(found.calibration) == 5
    assert "not kept for the next run" in found.warnings[0]


def test_the_default_folder_follows_the_xdg_specification():
    assert str(cache_folder({"XDG_CACHE_HOME": "/x", "HOME": "/h"})) == "/x/arrowquant_nb/calibration"
    assert str(cache_folder({"XDG_CACHE_HOME": "relative", "HOME": "/h"})) == "/h/.cache/arrowquant_nb/calibration"
    assert str(cache_folder({"HOME": "/h"})) == "/h/.cache/arrowquant_nb/calibration"
