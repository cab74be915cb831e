"""The cache runs a model once, believes no damaged entry, and says so."""

import dataclasses
import os

import pytest
from tiny_model import SETTINGS, Tiny

from arrowquant_nb import ConfigurationError
from arrowquant_nb.calibration.cache import cache_folder, cache_limit, cached_capture
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


def test_what_was_not_used_for_longest_goes_when_the_cache_is_full(tmp_path):
    def keep(seed, limit):
        known = set(tmp_path.iterdir())
        done = cached_capture(Tiny(seed=seed), SETTINGS, folder=tmp_path, limit=limit)
        new = set(tmp_path.iterdir()) - known
        for number, path in enumerate(sorted(tmp_path.iterdir(), key=os.path.getmtime)):
            os.utime(path, ns=(number, number))  # clocks may be coarse
        return done, new.pop() if new else None

    _, first = keep(0, 1 << 30)
    room = int(first.stat().st_size * 2.5)
    keep(1, room)
    assert keep(0, room)[0].reused  # the first one is the younger now
    (tmp_path / "notes.parquet").write_bytes(b"mine")
    _, third = keep(2, room)
    assert set(tmp_path.iterdir()) == {first, third, tmp_path / "notes.parquet"}
    assert not keep(1, room)[0].reused
    # An entry larger than the cache is kept: the run that made it may be repeated at once.
    done, last = keep(3, 0)
    assert not done.warnings
    assert set(tmp_path.iterdir()) == {last, tmp_path / "notes.parquet"}


def test_the_size_of_the_cache_is_a_setting_of_the_environment():
    assert cache_limit({}) == 2_000_000_000
    assert cache_limit({"ARROWQUANT_NB_CACHE_MB": "1.5"}) == 1_500_000
    for text in ("much", "-1", "inf", "nan"):
        with pytest.raises(ConfigurationError, match="ARROWQUANT_NB_CACHE_MB"):
            cache_limit({"ARROWQUANT_NB_CACHE_MB": text})
