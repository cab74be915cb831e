"""The dashboard of a log: of a finished run, of one that goes on, of one that was cut off, and of no log at all."""

import json
import shutil
import time

import pytest
from filelock import FileLock
from made_up_run import name_of, run_events

import arrowquant_nb as aq
from arrowquant_nb.errors import MetadataError, ModelNotFoundError
from arrowquant_nb.events import RunCancelled
from arrowquant_nb.ui.charts.layout import Axes
from arrowquant_nb.ui.replayed_run import ReplayedRun


def write(path, events, mode="w"):
    with path.open(mode) as file:
        file.writelines(json.dumps(e.to_dict()) + "\n" for e in events)


def drained(run, seconds=20.0):
    end = time.monotonic() + seconds
    while run.drain():
        assert time.monotonic() < end, "the dashboard never came to rest"
        time.sleep(0.01)
    return run


@pytest.fixture(scope="module")
def finished(sample_run):
    run = drained(aq.dashboard(sample_run / "events.jsonl"))
    yield run
    run.close()


def test_a_finished_run_says_how_it_ended_and_opens_its_worst_layer(finished):
    board = finished.dashboard
    assert finished.state.status == "finished"
    assert "Finished:" in board.line.status.value
    assert "role='status'" in board.line.status.value
    assert board.selection == finished.state.worst().name
    assert board.selection.removesuffix(".weight") in board.card.title.value
    assert "rank 1 of 28 (worst)" in board.card.title.value
    assert "<table" in board.card.attempts.value


def test_the_figure_shows_every_row_and_the_panels_of_the_selected_layer(finished):
    figure = finished.dashboard.figure.figure
    by_name = {trace.name: trace for trace in figure.data if trace.name}
    values = list(by_name["layers"].x)
    assert len(values) == 20
    assert values == sorted(values)
    assert values[0] == pytest.approx(finished.state.worst().sqnr_db)
    assert sum(by_name["before"].customdata) == finished.state.worst().plan.n_weights
    assert len(by_name["groups"].x) > 0
    assert figure._config["displaylogo"] is False
    assert "sendChartToCloud" in figure.layout.modebar.remove


@pytest.mark.parametrize("which", ["before", "after"])
def test_a_bin_that_holds_nothing_is_drawn_below_the_axis_of_counts(finished, which):
    figure = finished.dashboard.figure.figure
    counts = next(trace for trace in figure.data if trace.name == which)
    floor = 10 ** figure.layout[f"yaxis{Axes.WEIGHTS}"].autorangeoptions.minallowed
    assert 0 in counts.customdata
    for drawn, count in zip(counts.y, counts.customdata, strict=True):
        assert drawn == count if count else 0 < drawn < floor < 1


def test_the_table_shows_the_same_rows_in_the_same_order(finished):
    board = finished.dashboard
    names = list(dict.fromkeys(board.figure.figure.data[7].customdata))
    board.controls.table.value = True
    drained(finished)
    places = [board.table.value.index(f">{name}<") for name in names]
    assert places == sorted(places)
    board.controls.table.value = False
    drained(finished)


def test_a_click_on_a_row_selects_its_layer_and_a_second_one_clears(finished):
    board = finished.dashboard
    trace = board.figure.figure.data[7]

    class Points:
        point_inds = (55,)

    board.figure._clicked(trace, Points, None)
    drained(finished)
    chosen = trace.customdata[55]
    assert board.selection == chosen
    assert board.close_up.view.name == chosen
    board.figure._clicked(trace, Points, None)
    drained(finished)
    assert board.selection == ""
    assert board.card.widget.layout.display == "none"


def test_better_and_worse_step_through_the_ranks(finished):
    board = finished.dashboard
    board.selection = finished.state.worst().name
    board.card.better.click()
    assert "rank 2 of 28" in board.card.title.value
    board.card.worse.click()
    assert "rank 1 of 28" in board.card.title.value
    assert board.card.worse.disabled
    drained(finished)


def test_another_theme_or_width_is_another_figure_with_the_same_data(finished):
    board = finished.dashboard
    board.selection = finished.state.worst().name
    drained(finished)
    made, before = board.figure.n_made, board.figure.figure
    board.dress("dark", 700)
    drained(finished)
    assert board.figure.n_made == made + 1
    assert board.figure.figure is not before
    assert board.figure.figure.layout.width == 700
    assert len(board.figure.widget.children) == 1
    board.dress("light", 1100)
    drained(finished)


def test_a_page_that_is_loaded_again_gets_a_new_figure_and_the_old_one_may_still_be_asked_for(finished):
    board, bridge = finished.dashboard, finished._frame.bridge
    made, before = board.figure.n_made, board.figure.figure
    finished._frame._shown = False
    bridge._handle_custom_msg({"shown": True}, [])
    drained(finished)
    assert board.figure.n_made == made, "the first page has missed nothing"
    bridge._handle_custom_msg({"shown": True}, [])
    drained(finished)
    assert board.figure.n_made == made + 1
    assert board.figure.widget.children == (board.figure.figure,)
    assert before.comm is not None
    bridge._handle_custom_msg({"shown": True}, [])
    drained(finished)
    assert before.comm is None


def test_open_takes_the_first_row_of_what_was_typed_even_where_the_last_letters_come_late(finished):
    board = finished.dashboard
    names = [layer.name for layer in board.state.decided]
    board.controls.find.value = "blocks.2"
    board.controls.first.click()
    drained(finished)
    early = board.selection
    late = next(name for name in names if "blocks.2" in name and name != early)
    board.controls.find.value = late
    drained(finished)
    assert board.selection == late
    board.selection = names[0]
    board.controls.find.value = ""
    drained(finished)
    assert board.selection == names[0], "what was chosen since stays"


def test_selecting_what_is_not_there_is_an_error(finished):
    with pytest.raises(KeyError, match="no layer"):
        finished.dashboard.selection = "nothing"


def test_a_run_that_goes_on_is_followed_line_by_line(tmp_path):
    log = tmp_path / "events.jsonl"
    events = run_events(6)
    write(log, events[:7])
    with FileLock(tmp_path / ".lock"):
        run = ReplayedRun(log)
        assert len(run.state.decided) == 2
        write(log, events[7:10], "a")
        with log.open("a") as file:
            file.write('{"event":"layer_fin')  # a torn last line
        assert run.drain()
        assert len(run.state.decided) == 3
        assert not run.stopped
    run.close()


def test_a_run_that_was_cut_off_says_where(tmp_path):
    now = [0.0]
    write(tmp_path / "events.jsonl", run_events(6)[:7])
    run = ReplayedRun(tmp_path, clock=lambda: now[0])
    now[0] = 3.0
    drained(run)
    assert run.stopped
    assert "stopped here at 2 of 6 layers" in run.dashboard.line.status.value
    run.close()


def test_before_the_first_layer_there_is_nothing_to_resume(tmp_path):
    now = [0.0]
    write(tmp_path / "events.jsonl", run_events(6)[:2])
    run = ReplayedRun(tmp_path, clock=lambda: now[0])
    now[0] = 3.0
    drained(run)
    said = run.dashboard.line.status.value
    assert "stopped here before its first layer was done" in said
    assert "resume" not in said.lower()
    write(tmp_path / "events.jsonl", [RunCancelled(n_committed=0)], "a")
    run.drain()
    assert "Cancelled before the first layer was done. Run begins it again." in run.dashboard.line.status.value
    run.close()


def test_a_run_that_was_killed_opens_what_it_has_committed(sample_run, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(sample_run, folder)
    for name in ("manifest.json", "run.json"):
        (folder / name).unlink()
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    last = [i for i, line in enumerate(lines) if '"layer_finished"' in line and '"quantized"' in line][2]
    (folder / "events.jsonl").write_text("".join(lines[: last + 1]))
    later = [0.0]
    run = ReplayedRun(folder, clock=lambda: time.monotonic() + later[0])
    assert len(run.state.decided) == 3
    run.dashboard.selection = run.state.decided[1].name
    later[0] = 3.0
    drained(run)
    assert run.stopped
    view = run.dashboard.close_up.view
    assert view.name == run.state.decided[1].name
    assert sum(view.before) == run.state.decided[1].plan.n_weights
    assert view.ranges is not None, "what it was calibrated on is known too"
    run.close()


def test_what_a_run_was_given_stands_in_its_log(models, tmp_path):
    output = tmp_path / "out"
    aq.ArrowQuantV2(aq.DiffusionQuantConfig(method="rtn")).quantize_diffusion_model(models.mixed, output)
    run = ReplayedRun(output)
    assert run.state.given == {
        "model": str(models.mixed), "component": None, "variant": None, "calibration": None
    }  # fmt: skip
    run.close()


def test_a_log_that_begins_anew_is_read_anew(tmp_path):
    log = tmp_path / "events.jsonl"
    write(log, run_events(6))
    run = ReplayedRun(log)
    write(log, run_events(2, finished=False))
    run.drain()
    assert len(run.state.quantized) == 2
    run.close()


def test_no_log_and_a_damaged_one_are_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no log of a run"):
        aq.dashboard(tmp_path)
    log = tmp_path / "events.jsonl"
    write(log, run_events(1))
    with log.open("a") as file:
        file.write('{"event": "unheard of"}\n')
    with pytest.raises(MetadataError, match=r"events\.jsonl, line 6 is not an event"):
        aq.dashboard(log)


def test_at_a_thousand_layers_twenty_rows_are_drawn_and_the_map_has_them_all(tmp_path):
    log = tmp_path / "events.jsonl"
    write(log, run_events(1001))
    run = drained(ReplayedRun(log))
    figure = run.dashboard.figure.figure
    by_name = {trace.name: trace for trace in figure.data if trace.name}
    assert len(by_name["layers"].x) == 20
    assert sum(value is not None for row in by_name["map"].z for value in row) == 1001
    assert run.dashboard.controls.place.value == "1-20 of 1,001"
    run.dashboard.controls.next.click()
    drained(run)
    assert run.dashboard.controls.place.value == "21-40 of 1,001"
    run.dashboard.controls.find.value = "blocks.142.ff.net.2"
    drained(run)
    rows = next(trace for trace in run.dashboard.figure.figure.data if trace.name == "layers").customdata
    assert list(rows) == [run.dashboard.selection, name_of(142 * 7 + 5)], "the selected one and the one that is found"
    assert run.dashboard.figure.figure.layout.yaxis.range == (1.5, -1.6), "and no room for others"
    run.close()


def test_what_a_notebook_keeps_of_five_hundred_layers_is_small(tmp_path):
    write(tmp_path / "events.jsonl", run_events(500))
    run = drained(ReplayedRun(tmp_path))
    kept = json.dumps(run._repr_mimebundle_())
    assert "widget-view" in kept
    assert len(kept) < 10_000, "figure and words live in the kernel, or in a widget state that is saved on demand"
    assert len(run.dashboard.figure.figure.to_json()) < 200_000
    run.close()


def test_a_list_of_few_layers_shows_them_all_and_no_map(tmp_path):
    log = tmp_path / "events.jsonl"
    write(log, run_events(12))
    run = drained(ReplayedRun(log))
    names = {trace.name for trace in run.dashboard.figure.figure.data}
    assert "map" not in names
    assert run.dashboard.controls.place.value == "1-12 of 12"
    run.close()
