"""List, table and pages show the same layers in the same order."""

from dataclasses import replace

import pytest
from made_up_run import attempt, decibels_of, layer_events, name_of, report, run_events, started

from arrowquant_nb.events import LayerFinished
from arrowquant_nb.ui.layer_list import SHOWS, SORTS, ListView, list_page, ordered, page_rows, ranks
from arrowquant_nb.ui.run_state import RunState


@pytest.fixture(scope="module")
def state():
    return RunState.of(run_events(45))


def test_the_worst_layer_is_first_and_pages_are_of_twenty(state):
    page = list_page(state, ListView())
    worst = sorted(range(45), key=decibels_of)
    assert [layer.name for layer in page.rows] == [name_of(i) for i in worst[:20]]
    assert (page.first, page.total, page.pinned) == (0, 45, -1)
    assert len(list_page(state, ListView(page=2)).rows) == 5
    assert list_page(state, ListView(page=99)).first == 40


def test_every_sort_lists_every_decided_layer_once(state):
    for sort in SORTS:
        names = [layer.name for layer in ordered(state, ListView(sort=sort))]
        assert sorted(names) == sorted(name_of(i) for i in range(45)), sort
    assert [layer.name for layer in ordered(state, ListView(sort="Model order"))] == [name_of(i) for i in range(45)]


@pytest.mark.parametrize(
    ("find", "names"),
    [
        ("ff.net.2", [n for n in map(name_of, range(45)) if "ff.net.2" in n]),
        ("BLOCKS.3.", [n for n in map(name_of, range(45)) if "blocks.3." in n]),
        ("*.1.*to_q*", [name_of(7)]),
        ("b3.ff.net.2", ["transformer_blocks.3.ff.net.2.weight"]),  # as the list calls it
        ("nothing like it", []),
    ],
)
def test_find_takes_a_part_of_a_name_or_a_glob(state, find, names):
    assert sorted(layer.name for layer in ordered(state, ListView(find=find))) == sorted(names)


def test_filters_show_what_their_words_say():
    tries = (attempt(2, 7.0, passed=False), attempt(4, 24.0))
    fell = report(0, 24.0, attempts=tries, requested=2).to_record()
    missed = report(1, 15.0, 8, attempts=(attempt(8, 15.0, passed=False),), requested=8).to_record()
    events = [started(4), *layer_events(2, 4)]
    events += [LayerFinished(name=name_of(i), index=i, n_layers=4, report=r) for i, r in enumerate((fell, missed))]
    found = RunState.of(events)
    shown = {show: [layer.name for layer in ordered(found, ListView(show=show))] for show in SHOWS}
    assert set(shown["All layers"]) == {name_of(0), name_of(1), name_of(2)}
    assert shown["Fell back"] == [name_of(0)]
    assert shown["Below gate"] == [name_of(1)]
    assert shown["INT8"] == [name_of(1)]
    assert shown["INT2"] == shown["Overridden"] == shown["Kept"] == []


def test_the_selected_layer_is_put_on_top_of_a_page_it_is_not_on(state):
    best = max(range(45), key=decibels_of)
    page = list_page(state, ListView(selected=name_of(best)))
    assert page.rows[0].name == name_of(best)
    assert page.pinned == 44
    assert len(page.rows) == 20
    worst = min(range(45), key=decibels_of)
    assert list_page(state, ListView(selected=name_of(worst))).pinned == -1


def test_a_search_leaves_room_for_what_it_finds_and_the_selected_layer_once_the_run_is_over(state):
    assert page_rows(state, ListView()) == 20
    found = ListView(find=name_of(9))
    assert page_rows(state, found) == 1
    assert page_rows(state, replace(found, selected=name_of(9))) == 1
    assert page_rows(state, replace(found, selected=name_of(3))) == 2
    assert page_rows(state, ListView(find="no such layer")) == 1
    assert page_rows(state, ListView(show="INT4", find="blocks")) == 20
    running = RunState.of(list(run_events(45))[:30])
    assert page_rows(running, found) == 20


def test_a_held_order_keeps_its_places_and_new_rows_come_last(state):
    held = ListView(order=(name_of(9), name_of(3)))
    names = [layer.name for layer in ordered(state, held)]
    assert names[:2] == [name_of(9), name_of(3)]
    assert len(names) == 45


def test_ranks_go_from_worst_to_best(state):
    places = ranks(state)
    assert places[name_of(min(range(45), key=decibels_of))] == 0
    assert sorted(places.values()) == list(range(45))
