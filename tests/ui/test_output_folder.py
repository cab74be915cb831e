"""What the app says of a folder agrees with what a run will do there."""

import threading

import pytest

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig
from arrowquant_nb.errors import QuantizationError
from arrowquant_nb.runs.model_choice import ModelChoice
from arrowquant_nb.runs.quantization import quantize_model
from arrowquant_nb.ui.output_folder import OutputFolder, unfinished_runs


def test_a_run_that_was_stopped_before_its_first_layer_is_in_nobodys_way(models, tmp_path):
    stop = threading.Event()
    stop.set()
    config = DiffusionQuantConfig(method="rtn", num_threads=1)
    with pytest.raises(QuantizationError, match="cancelled"):
        quantize_model(ModelChoice(models.mixed), tmp_path / "m", config, stop=stop)
    assert sorted(p.name for p in (tmp_path / "m").iterdir() if p.name != ".lock") == ["events.jsonl", "journal.jsonl"]
    found = OutputFolder.look(str(tmp_path / "m"), "mixed", ["layers.0.weight"])
    assert "stopped here before its first layer" in found.words
    assert (found.usable, found.resumable, found.logged) == (True, False, True)
    assert unfinished_runs(tmp_path) == [tmp_path / "m"]
    ArrowQuantV2(config).quantize_diffusion_model(models.mixed, tmp_path / "m")
    assert unfinished_runs(tmp_path) == []


def test_what_is_not_ours_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    found = OutputFolder.look(str(tmp_path), "mixed", [])
    assert (found.usable, "holds no run of ours" in found.words) == (False, True)
    (tmp_path / "journal.jsonl").write_text("")
    assert not OutputFolder.look(str(tmp_path), "mixed", []).usable
