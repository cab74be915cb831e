"""The app by its widgets' values, without a browser: form and plan, run, cancel, resume, error, one layer again."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import dit_tensors, tree, write_checkpoint
from filelock import FileLock

import arrowquant_nb as aq
from arrowquant_nb.calibration.capture import FIT, HELD_OUT
from arrowquant_nb.calibration.capture_file import write_calibration
from arrowquant_nb.calibration.inputs import InputStatistics
from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.diffusion_orchestrator import DiffusionOrchestrator
from arrowquant_nb.errors import QuantizationError
from arrowquant_nb.events import LayerFinished
from arrowquant_nb.ui import studio_cell
from arrowquant_nb.ui.app import Studio
from arrowquant_nb.ui.compare_panel import runs_beside
from arrowquant_nb.ui.layer_order import LayerOrder

MSE = DiffusionQuantConfig(method="mse", bit_width=8, num_threads=1)
SETTINGS = CalibrationSettings(n_samples=4, rows_per_step=8, held_out_rows_per_step=8)
QUICK = DiffusionQuantConfig(calibration_samples=4, num_time_groups=5)


def drained(app, seconds=120.0):
    end = time.monotonic() + seconds
    while app.drain():
        assert time.monotonic() < end, "the app never came to rest"
        time.sleep(0.01)
    return app


def until(app, condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        app.drain()
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def words_of(app):
    return app.run_view.dashboard.line.status.value


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An app whose run of the sample has finished."""
    app = drained(Studio("digits-dit", QUICK))
    app.output.value = str(tmp_path_factory.mktemp("studio") / "out")
    app.run.click()
    assert app.running
    drained(app)
    yield app
    app.close(30)


@pytest.fixture
def still(models):
    """An app over a small checkpoint that nothing has been run in."""
    app = drained(Studio(models.mixed, DiffusionQuantConfig(method="rtn")))
    yield app
    app.close(30)


def test_without_a_word_the_first_sample_is_open_and_can_be_run():
    app = Studio()
    assert app.plan is not None
    assert not app.run.disabled
    assert "Image model: 28 layers" in app.picker.words.value
    assert "metadata.json" in app.picker.words.value
    assert "Nothing has been written" in app.target.status.value
    drained(app)


def test_every_width_button_carries_the_size_of_its_plan(still):
    labels = {bits: label for label, bits in still.form.controls["bit_width"].main.options}
    for bits in (2, 4, 8):
        plan = aq.ArrowQuantV2(still.config.replace(bit_width=bits)).plan(still.model)
        assert labels[bits].startswith(f"INT{bits}  ")
        assert float(labels[bits].split()[1]) == pytest.approx(plan.size_mb, abs=6e-3)


def test_a_change_of_the_form_changes_the_plan_and_says_by_how_much(still):
    before = still.plan.size_mb
    still.form.controls["bit_width"].value = 8
    drained(still)
    assert still.plan.size_mb > before
    assert f"last change: Bits INT4 to INT8, +{still.plan.size_mb - before:.3f} MB" in still.plan_section.widget.value
    assert still.output.value.endswith("-int8"), "the suggested name follows"


def test_the_plan_names_the_last_change_and_none_before_there_is_one(still):
    assert "last change" not in still.plan_section.widget.value
    still.form.controls["deployment_profile"].value = "edge"
    drained(still)
    assert "last change: Local to Edge, -" in still.plan_section.widget.value
    still.form.controls["min_accuracy"].main.value = "0.91"
    drained(still)
    assert "last change: Quality floor 0.9 to 0.91, no change in size" in still.plan_section.widget.value
    still.open(still.model)
    drained(still)
    assert "last change" not in still.plan_section.widget.value


def test_a_refused_value_turns_run_off_and_names_the_field(still):
    still.form.controls["min_accuracy"].main.value = "1.2"
    drained(still)
    assert still.run.disabled
    assert "Run is off: 1 setting needs attention (Quality floor)" in still.target.why_off.value
    still.form.controls["min_accuracy"].main.value = "0.9"
    drained(still)
    assert not still.run.disabled


def test_a_rule_that_matches_no_layer_is_said_where_the_model_is(still):
    still.form.controls["layer_bit_widths"].main.value = "no.such.layer: 8"
    drained(still)
    assert "matches no weight" in still.picker.words.value
    assert still.run.disabled


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "missing", "there is no model at"),
        (lambda p: (p / "weights.bin").write_bytes(b"\x80\x02") and p / "weights.bin", "weights.bin"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "empty"),
    ],
)
def test_a_path_that_is_no_model_is_said_under_it(still, tmp_path, make, words):
    still.picker.path.value = str(make(tmp_path))
    still.picker.open.click()
    drained(still)
    assert "role='alert'" in still.picker.words.value
    assert words in still.picker.words.value
    assert still.run.disabled
    assert "no model is open" in still.target.why_off.value


def test_a_misspelled_path_is_answered_with_the_near_one(still, tmp_path):
    (tmp_path / "flux-fp16").mkdir()
    still.picker.path.value = str(tmp_path / "flux-fp61")
    still.picker.open.click()
    drained(still)
    assert "Did you mean" in still.picker.words.value
    assert "flux-fp16" in still.picker.words.value


def test_settings_go_to_yaml_and_come_back_unchanged(still, tmp_path):
    still.form.set_config(DiffusionQuantConfig.from_profile("edge", seed=7, layer_bit_widths={"layers.1": 8}))
    written = still.config
    still.settings.file.value = str(tmp_path / "s.yaml")
    still.settings.save.click()
    still.form.set_config(DiffusionQuantConfig())
    still.settings.load.click()
    assert still.config == written
    assert "Loaded" in still.settings.words.value


def test_unreadable_yaml_is_said_with_its_line_and_changes_nothing(still, tmp_path):
    before = still.config
    (tmp_path / "bad.yaml").write_text("bit_width: 4\nbitwidth: 2\n")
    for name in ("bad.yaml", "missing.yaml"):
        still.settings.file.value = str(tmp_path / name)
        still.settings.load.click()
        assert "role='alert'" in still.settings.words.value
        assert "Nothing was changed." in still.settings.words.value
    still.settings.file.value = str(tmp_path / "bad.yaml")
    still.settings.load.click()
    assert "line 2" in still.settings.words.value
    assert "bit_width" in still.settings.words.value
    assert still.config == before


def test_copied_python_gives_an_equal_config_and_the_command_names_its_file(still, tmp_path):
    still.form.set_config(DiffusionQuantConfig.from_profile("edge", seed=7, sensitive_layer_names=("layers.1",)))
    still.settings.file.value = str(tmp_path / "s.yaml")
    still.settings.python.click()
    code = still.settings.code.value
    names = {}
    exec(code.rpartition("result = ")[0], names)
    assert names["config"] == still.config
    assert still.settings.code.layout.display == ""
    still.settings.papermill.click()
    assert still.settings.code.value.startswith("arrowquant run ")
    assert f"-p config_yaml {tmp_path / 's.yaml'}" in still.settings.code.value
    assert DiffusionQuantConfig.from_yaml(tmp_path / "s.yaml") == still.config


@pytest.fixture
def cut_off(tmp_path, monkeypatch):
    """A folder in the current one with a run of a model and settings that the app does not begin with; its model."""
    monkeypatch.chdir(tmp_path)
    model = write_checkpoint(tmp_path / "model", dit_tensors(n_blocks=12, width=128))
    stop = threading.Event()
    with pytest.raises(QuantizationError, match="cancelled"):
        DiffusionOrchestrator(MSE).quantize_model(model, tmp_path / "mine", on_event=_stop_at_first(stop), stop=stop)
    return "mine", str(model)


def _stop_at_first(stop):
    """Return what stops a run at its first quantized layer."""
    return lambda event: stop.set() if isinstance(event, LayerFinished) and event.report["bit_width"] < 16 else None


def test_a_run_that_was_cut_off_is_found_shown_and_gone_on_with(cut_off):
    folder, model = cut_off
    app = drained(Studio("digits-dit"))
    label, button = app.target.earlier.children
    assert (label.value, button.description) == ("Unfinished here:", folder)
    button.click()
    drained(app)
    assert app.config == MSE
    assert (app.model, app.output.value) == (model, folder)
    assert app.runs.replay.dashboard.widget in app.runs.widget.children[0].children
    kept = [layer.name for layer in app.runs.replay.state.decided]
    assert len(kept) >= 1
    assert f"{len(kept)} of" in app.target.words.value
    assert (app.run.description, app.run.disabled) == ("Resume", False)
    app.run.click()
    drained(app)
    assert app.runs.replay is None
    assert all(app.run_view.session.state.layers[name].reused for name in kept)
    assert app.result is not None
    assert app.target.earlier.children == ()
    app.close(30)


@pytest.fixture
def cut_off_part(tmp_path, monkeypatch):
    """Such a folder, of one part of a pipeline, a variant of its files, and a calibration file; what it was given."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "pipeline"
    write_checkpoint(root / "prior", dit_tensors(n_blocks=12), stem="diffusion_pytorch_model.fp16")
    write_checkpoint(root / "transformer", dit_tensors(n_blocks=2))
    index = {name: ["diffusers", "DiTTransformer2DModel"] for name in ("prior", "transformer")}
    (root / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", **index}))
    capture = InputStatistics(SETTINGS)
    for which in (FIT, HELD_OUT):
        for step, timestep in enumerate((900, 500, 100)):
            capture.begin_call(which, step)
            rows = np.random.default_rng([which, step]).standard_normal((16, 128)).astype(np.float32)
            capture.observe("transformer_blocks.0.attn1.to_q.weight", timestep, rows, 1.0)
    write_calibration(tmp_path / "inputs.parquet", Calibration(capture.finish(), "capture", SETTINGS, "0" * 32))
    given = {"component": "prior", "variant": "fp16", "calibration": str(tmp_path / "inputs.parquet")}
    stop = threading.Event()
    with pytest.raises(QuantizationError, match="cancelled"):
        DiffusionOrchestrator(MSE).quantize_model(
            root, tmp_path / "part", on_event=_stop_at_first(stop), stop=stop, **given
        )
    return str(root), given


def test_a_run_that_is_taken_up_brings_back_what_was_read_beside_its_model(cut_off_part):
    model, given = cut_off_part
    app = drained(Studio("digits-dit"))
    app.take_up(Path("part"))
    drained(app)
    assert {name: box.value for name, box in app.picker.parts.items()} == given
    assert app.picker.path.value == model
    assert "component prior, variant fp16, calibration " in app.target.status.value
    assert "does not say" not in app.target.status.value
    assert len(app.plan.rows) == len(dit_tensors(n_blocks=12)), "the plan is of that part"
    assert app.run.description == "Resume"
    kept = [layer.name for layer in app.runs.replay.state.decided]
    app.run.click()
    drained(app)
    assert app.run_view.session.error == ""
    assert all(app.run_view.session.state.layers[name].reused for name in kept)
    assert app.result.calibration["source"] == "calibration file inputs.parquet"
    app.settings.python.click()
    assert 'component="prior", variant="fp16", calibration="' in app.settings.code.value
    app.settings.papermill.click()
    assert "-p component prior -p variant fp16 -p calibration " in app.settings.code.value
    app.close(30)


def test_what_the_record_of_a_run_lacks_is_said(cut_off_part):
    model, _ = cut_off_part
    log = Path("part") / "events.jsonl"
    first, *others = log.read_text().splitlines(keepends=True)
    event = json.loads(first)
    log.write_text(json.dumps(event | {"given": {"model": event["given"]["model"]}}) + "\n" + "".join(others))
    app = drained(Studio("digits-dit"))
    app.take_up(Path("part"))
    assert "Its record does not say its component, variant and calibration" in app.target.status.value
    assert [box.value for box in app.picker.parts.values()] == ["", "", ""]
    log.write_text(json.dumps(event | {"given": {}}) + "\n" + "".join(others))
    app.take_up(Path("part"))
    drained(app)
    assert "does not say its model, component, variant and calibration" in app.target.status.value
    assert app.model == model, "the one that is open stays"
    app.close(30)


def test_what_is_read_beside_a_model_can_be_typed_and_goes_with_it(cut_off_part):
    model, given = cut_off_part
    app = drained(Studio(model))
    n_denoiser = len(app.plan.rows)
    for name, value in given.items():
        app.picker.parts[name].value = value
        drained(app)
    assert app.choice.parts == given
    assert len(app.plan.rows) > n_denoiser
    app.picker.parts["component"].value = "nothing"
    drained(app)
    assert "nothing" in app.picker.words.value
    assert app.run.disabled
    app.picker.sample.value = "digits-dit"
    drained(app)
    assert app.choice.parts == dict.fromkeys(given)
    shown = [name for name, box in app.picker.parts.items() if box.layout.display != "none"]
    assert shown == ["calibration"], "a sample has no parts"
    app.picker.parts["calibration"].value = "none"
    drained(app)
    assert "calibration is switched off" in app.plan.strategy.reason
    app.close(30)


def test_a_run_that_goes_on_elsewhere_is_waited_for(cut_off):
    app = drained(Studio("digits-dit"))
    with FileLock(f"{cut_off[0]}/.lock"):
        app.target.earlier.children[1].click()
        until(app, lambda: app.plan is not None and app.plan.model == "model")
        assert "A run is writing this folder now" in app.target.words.value
        assert app.run.disabled
    until(app, lambda: not app.run.disabled)
    assert app.run.description == "Resume"
    app.close(30)


def test_a_log_that_cannot_be_read_is_said(still, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "events.jsonl").write_text("no event\n")
    still.take_up(Path("odd"))
    assert "This run cannot be taken up" in still.target.status.value
    assert "line 1" in still.target.status.value
    assert still.runs.replay is None


def test_outputs_that_cannot_be_used_turn_run_off_and_another_name_is_offered(still, models, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "holiday.jpg").touch()
    for path, words in (
        (tmp_path / "taken", "holds no run of ours"),
        (models.quantized("dit"), "finished model of"),
        (tmp_path / "taken" / "holiday.jpg", "This is a file"),
        ("", "Type a folder"),
    ):
        still.output.value = str(path)
        assert words in still.target.words.value
        assert still.run.disabled
    still.output.value = str(tmp_path / "taken")
    still.target.another.click()
    assert still.output.value == str(tmp_path / "taken-2")
    assert not still.run.disabled


def test_a_finished_run_is_the_run_of_the_settings(finished):
    assert finished.run_view.session.error == ""
    assert finished.result.config == QUICK.to_dict()
    assert "Finished:" in words_of(finished)
    assert len(aq.open_quantized(finished.output.value)) == len(finished.result.layers)
    assert finished.selection == finished.run_view.session.state.worst().name
    assert finished.run_view.cancel.disabled
    assert finished._form_place.layout.display == "none"


def test_samples_of_original_and_quantized_appear_by_themselves(finished):
    assert "<svg" in finished.run_view.samples.view.value
    assert not finished.run_view.samples.draw.disabled


def test_one_figure_and_no_thread_is_left(finished):
    boxes = finished.run_view.dashboard.figure.widget.children
    assert len(boxes) == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("arrowquant-run")]


def test_one_layer_again_changes_that_layer_alone_and_undo_takes_it_back(finished):
    folder = finished.run_view.session.output
    before = tree(folder)
    layers = {r.name: r for r in finished.result.layers}
    name = finished.run_view.session.state.worst().name
    finished.selection = name
    card, change = finished.run_view.dashboard.card, finished.run_view.change
    assert "r2q" not in change.method.options, "INT4: it has no such width"
    change.bits.value = 8
    change.method.value = "mse"
    change.apply.click()
    assert change.apply.description == "Working..."
    drained(finished)
    assert finished.run_view.session.error == ""
    assert {r.name for r in finished.result.layers if r != layers[r.name]} == {name}
    changed = {file for file, digest in tree(folder).items() if digest != before[file]}
    data = {file for file in changed if file.endswith(".parquet") and file != "stats.parquet"}
    assert len(data) == 1
    assert name.split(".")[-2] in next(iter(data))
    assert finished.config.layer_bit_widths == {name: 8}, "YAML and copies carry the change"
    assert finished.config.layer_methods == {name: "mse"}
    assert f"Changed by you (1)</b> {name}: INT8 by mse" in finished.run_view.changed.value
    assert "override" in finished.run_view.session.state.layers[name].words
    assert "INT8 mse" in card.title.value
    finished.selection = name
    change.undo.click()
    drained(finished)
    assert (finished.config.layer_bit_widths, finished.config.layer_methods) == ({}, {})
    assert tree(folder) == before


def test_keeping_a_layer_redoes_no_other(finished):
    name = finished.run_view.session.state.worst().name
    finished.selection = name
    change = finished.run_view.change
    change.keep.value = True
    change.apply.click()
    drained(finished)
    n_quantized = sum(r.action == "quantized" for r in finished.result.layers)
    assert finished.result.reused == n_quantized, "kept ones stand together in one file, which has one more now"
    assert {r.name: r.action for r in finished.result.layers}[name] == "kept"
    finished.run_view.session.override(LayerOrder(name))
    drained(finished)


def test_another_run_is_compared_in_place(finished, sample_run):
    panel = finished.run_view.compare
    finished.run_view.other.click()
    assert panel.widget.layout.display == ""
    panel.path.value = str(sample_run)
    drained(finished)
    assert f"This run is A, {sample_run} is B" in panel.words.value
    assert "Settings that differ" in panel.view.children[0].children[1].value
    panel.path.value = str(sample_run / "nothing")
    drained(finished)
    assert "role='alert'" in panel.words.value
    assert panel.view.children == ()
    finished.run_view.other.click()
    assert panel.widget.layout.display == "none"


def test_other_finished_runs_in_the_same_folder_are_offered(models, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "manifest.json").touch()
    assert [path.name for path in runs_beside(tmp_path / "a")] == ["b"]
    assert runs_beside(tmp_path / "absent" / "x") == []


def test_the_report_is_one_file_beside_the_model(finished):
    finished.run_view.save.click()
    drained(finished)
    output = finished.run_view.session.output
    assert output.with_name(f"{output.name}-report.html").stat().st_size > 10_000
    assert "Report saved" in words_of(finished)


def test_cancel_keeps_what_is_done_and_resume_goes_on(tmp_path):
    model = write_checkpoint(tmp_path / "model", dit_tensors(n_blocks=12, width=256))
    app = drained(Studio(model, DiffusionQuantConfig(method="mse")))
    app.output.value = str(tmp_path / "out")
    app.run.click()
    assert "Started." in words_of(app), "a sentence at once"
    until(app, lambda: "<progress" in app.run_view.dashboard.line.bar.value)
    app.run_view.cancel.click()
    assert app.run_view.cancel.description == "Cancelling..."
    assert "Stopping" in words_of(app)
    drained(app)
    assert not app.running
    assert "Cancelled " in words_of(app)
    assert f"{app.run_view.resume.description} " in words_of(app), "the button is called what the words say"
    assert app.run_view.resume.description == app.run.description
    assert app.run_view.session.error == ""
    assert app.run_view.resume.layout.display == ""
    app.run_view.resume.click()
    drained(app)
    assert "Finished:" in words_of(app)
    aq.ArrowQuantV2(app.config).quantize_diffusion_model(model, tmp_path / "straight")
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")
    app.close(30)


def test_the_page_is_told_of_a_run_before_its_thread_works(still, tmp_path):
    still.output.value = str(tmp_path / "out")
    start, told = still._worker.start, []

    def watched(name, *rest):
        told.append((name, still.run_view.cancel.layout.display, "Started." in words_of(still), still.run.disabled))
        return start(name, *rest)

    still._worker.start = watched
    still.run.click()
    assert told[0] == ("run", "", True, True)
    drained(still)
    assert "Finished:" in words_of(still)


def test_a_layer_ordered_in_mid_run_is_done_next(tmp_path):
    model = write_checkpoint(tmp_path / "model", dit_tensors(n_blocks=16, width=256))
    app = drained(Studio(model, DiffusionQuantConfig(method="mse")))
    app.output.value = str(tmp_path / "out")
    app.run.click()
    session = app.run_view.session
    until(app, lambda: len(session.state.decided) > 0)
    name = session.state.decided[0].name
    app.selection = name
    app.run_view.change.bits.value = 8
    app.run_view.change.apply.click()
    assert app.running
    assert "Queued: starts after the layer" in app.run_view.change.note.value
    assert f"Queued (1)</b> {name}: INT8" in app.run_view.changed.value
    until(app, lambda: not session.waiting)
    drained(app)
    assert session.error == ""
    assert (session.state.status, session.state.layers[name].report.bit_width) == ("finished", 8)
    assert app.config.layer_bit_widths == {name: 8}
    assert "Queued" not in app.run_view.changed.value
    aq.ArrowQuantV2(app.config).quantize_diffusion_model(model, tmp_path / "straight")
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")
    app.close(30)


def test_where_a_size_limit_decides_an_order_waits_for_the_end_and_can_be_taken_back(models, tmp_path):
    size = aq.ArrowQuantV2().plan(models.dit).size_mb
    app = drained(Studio(models.dit, DiffusionQuantConfig(method="mse", target_model_size_mb=0.95 * size)))
    app.output.value = str(tmp_path / "out")
    app.run.click()
    session = app.run_view.session
    first, second = [row.name for row in app.plan.rows if row.action == "quantized"][:2]
    assert "has ended: a size limit decides all layers together" in session.override(LayerOrder(first, 8))
    assert "has ended" in session.override(LayerOrder(second, 8))
    assert session.override(LayerOrder(second)) == "Taken back."
    assert list(session.waiting) == [first]
    assert "exists at 2 bits only" in session.override(LayerOrder(first, 4, "r2q"))
    drained(app)
    assert app.config.layer_bit_widths == {first: 8}
    assert {r.name: r.bit_width for r in app.result.layers}[first] == 8
    app.close(30)


def test_a_failed_run_says_why_with_the_traceback_folded_and_can_keep_what_failed(models, tmp_path):
    app = drained(Studio(models.mixed, DiffusionQuantConfig(method="rtn", min_accuracy=0.9999999)))
    app.output.value = str(tmp_path / "out")
    app.run.click()
    drained(app)
    assert "Failed" in app.run_view.error.value
    assert "<details><summary>Show traceback" in app.run_view.error.value
    assert "QuantizationError" in app.run_view.error.value
    assert app.run_view.keep.layout.display == ""
    n = len(app.run_view.session.state.decided)
    assert f"Failed: {n} layers failed at every bit width" in words_of(app)
    assert f"0 of {n} layers are kept. Keep " in words_of(app)
    assert "layer_bit_widths" not in words_of(app), "the long of it is folded"
    assert "<details><summary>Show all of it" in app.run_view.error.value
    app.run_view.keep.click()
    assert app.run_view.dashboard.figure.figure is None, "what failed is not shown any longer"
    drained(app)
    assert "Finished:" in words_of(app)
    assert set(app.result.config["layer_bit_widths"].values()) == {16}
    app.close(30)


def test_an_error_before_the_first_layer_is_shown_too(models, tmp_path):
    app = drained(Studio(models.mixed, DiffusionQuantConfig(method="rtn")))
    app.output.value = str(tmp_path / "out")
    (tmp_path / "out").write_text("in the way")
    app._check_output = lambda: None
    app.run.disabled = False
    app.start()
    drained(app)
    assert "is a file" in app.run_view.error.value
    assert not app.running
    app.close(30)


def test_running_the_cell_again_replaces_the_app_and_leaves_no_thread(models, tmp_path, monkeypatch):
    monkeypatch.setattr(studio_cell, "_LIVE", {})
    first = drained(aq.studio(models.dit))
    first.output.value = str(tmp_path / "out")
    first.run.click()
    second = aq.studio(models.dit)
    assert "Replaced by a newer view" in first._frame.content.children[0].value
    assert first.close(60), "the old run ends"
    drained(first)
    second.output.value = str(tmp_path / "out")
    assert second.run.description in ("Run", "Resume")
    drained(second)
    second.close(30)


def test_the_theme_can_be_forced_and_follows_the_page_otherwise(still):
    still._frame.bridge.theme = "dark"
    assert "aq-dark" in still.widget._dom_classes
    still._frame.theme_choice.value = "Light"
    assert "aq-dark" not in still.widget._dom_classes
    still._frame.theme_choice.value = "Dark"
    still._frame.bridge.theme = "light"
    assert "aq-dark" in still.widget._dom_classes


def test_the_app_is_shown_by_being_what_a_cell_returns(still):
    assert "application/vnd.jupyter.widget-view+json" in still._repr_mimebundle_()


def test_the_forecast_is_called_one_and_the_slider_solves_at_once(still):
    still.forecast.measure()
    drained(still)
    assert "<b>Forecast</b>" in still.forecast.words.value
    assert not still.forecast.slider.disabled
    assert "MB" in still.forecast.hint.value
    budget = still.forecast._budget
    assert still.forecast.slider.min == pytest.approx(budget.smallest_mb)
    still.forecast.slider.value = still.forecast.slider.min
    assert f"at {budget.solve(budget.smallest_mb).size_mb:.3f} MB" in still.forecast.words.value
    still.form.controls["group_size"].value = 128
    assert "was of another model or other settings" in still.forecast.words.value
    assert still.forecast.slider.disabled


def test_a_forecast_of_another_model_is_dropped(still, models):
    still.forecast.measure()
    drained(still)
    still.open(models.dit)
    drained(still)
    assert still.forecast.slider.disabled
    assert "<b>Forecast</b>" not in still.forecast.words.value


def test_the_slider_and_the_field_are_one_size_limit(still):
    row = still.form._rows["target_model_size_mb"]
    assert {still.forecast.slider, still.forecast.hint, still.forecast.lift} < set(row.children)
    still.forecast.measure()
    drained(still)
    without = still.forecast.words.value
    assert still.forecast.lift.layout.display == "none"
    limit = 0.9 * still.plan.size_mb
    still.forecast.slider.value = limit
    drained(still)
    assert still.config.target_model_size_mb == pytest.approx(limit, abs=still.forecast.slider.step)
    assert still.plan.size_mb <= still.config.target_model_size_mb
    typed = round(0.95 * still.plan.size_mb, 4)
    still.form.controls["target_model_size_mb"].main.value = str(typed)
    drained(still)
    assert still.forecast.slider.value == pytest.approx(typed)
    assert f"at {still.forecast._budget.solve(typed).size_mb:.3f} MB" in still.forecast.words.value
    still.forecast.lift.click()
    drained(still)
    assert still.config.target_model_size_mb is None
    assert still.forecast.words.value == without
    assert still.forecast.lift.layout.display == "none"
