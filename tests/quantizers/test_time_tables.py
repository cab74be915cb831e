"""Time tables as values: lookup at every edge, JSON and pickle round trips, and what they refuse."""

import copy
import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb import MetadataError, TimeAwareQuantMetadata, TimeGroupParams, ValidationError
from arrowquant_nb.quantizers.time_tables import LayerTimeTable, normalised_time

few = settings(max_examples=60, deadline=None)


def table_of(*edges, layer="a.weight", n_timesteps=1000):
    groups = tuple(
        TimeGroupParams((first, last), float(np.float32(0.1 * (k + 1))), k, 64, n_timesteps)
        for k, (first, last) in enumerate(itertools.pairwise(edges))
    )
    return LayerTimeTable.of_groups(layer, groups, 1.5)


METADATA = TimeAwareQuantMetadata(8, 1000, "minmax", (table_of(39, 500, 1000), table_of(39, 1000, layer="b.weight")))


def test_a_step_falls_into_the_interval_that_holds_it():
    table = table_of(100, 300, 600)
    at = {t: table.group_at(normalised_time(t, 1000)) for t in (100, 299, 300, 599)}
    assert at == {100: 0, 299: 0, 300: 1, 599: 1}
    assert (table.group_at(0.0996), table.group_at(0.5994)) == (0, 1)  # times are those of whole steps, rounded
    for outside in (0, 99, 600, 1000):
        with pytest.raises(ValidationError, match=rf"a\.weight.*100\.\.599 of 1000.*at {outside}: calibrate"):
            table.group_at(normalised_time(outside, 1000))


def test_the_noisiest_time_is_the_last_training_timestep_and_a_static_grid_holds_always():
    assert table_of(500, 700, 1000).group_at(1.0) == 1
    assert table_of(0, 500, 1001).group_at(1.0) == 1  # a mask ratio of 1
    assert [table_of(500, 700).group_at(t) for t in (0.0, 0.6, 1.0)] == [0, 0, 0]


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True), st.integers(0, 1000))
@few
def test_lookup_in_normalised_time_equals_lookup_by_timestep(edges, time):
    edges = sorted(edges)
    table = table_of(*edges)
    inside = [k for k, group in enumerate(table.groups) if group.time_range[0] <= time < group.time_range[1]]
    if inside or len(table.groups) == 1 or (time == edges[-1] == 1000):
        assert table.group_at(normalised_time(time, 1000)) == (inside or [len(table.groups) - 1])[0]
        return
    with pytest.raises(ValidationError, match=r"a\.weight"):
        table.group_at(normalised_time(time, 1000))


def test_one_lookup_serves_all_layers():
    assert METADATA.groups_at(499) == {"a.weight": 0, "b.weight": 0}
    assert METADATA.groups_at(500) == {"a.weight": 1, "b.weight": 0}


def test_metadata_survive_json_pickle_and_copy():
    again = TimeAwareQuantMetadata.from_dict(json.loads(json.dumps(METADATA.to_dict())))
    assert again == METADATA
    assert pickle.loads(pickle.dumps(METADATA)) == METADATA
    assert copy.deepcopy(METADATA) == METADATA
    assert hash(again) == hash(METADATA)
    group = METADATA.tables[0].groups[0]
    assert TimeGroupParams.from_dict(json.loads(json.dumps(group.to_dict()))) == group
    METADATA.groups_at(41)  # a cached lookup is not part of the value
    assert pickle.loads(pickle.dumps(METADATA)).groups_at(41) == METADATA.groups_at(41)


def test_times_are_stored_normalised_as_float32_too():
    group = METADATA.tables[0].groups[0]
    assert group.to_dict()["normalised_time_range"] == [float(np.float32(0.039)), 0.5]
    assert METADATA.to_dict()["tables"][0]["boundaries"] == [0.5, 1.0]


def test_a_layer_takes_its_own_part():
    part = METADATA.of_layer("b.weight")
    assert part.tables == METADATA.tables[1:]
    assert METADATA.of_layer("c.weight") is None


def test_uncovered_steps_and_missing_tables_are_refused_by_layer():
    METADATA.check_covers(range(39, 1000, 40))
    with pytest.raises(ValidationError, match=r"a\.weight.*39\.\.999 of 1000, not 19 \(1 of 2"):
        METADATA.check_covers([19, 59])
    with pytest.raises(ValidationError, match=r"c\.weight.*no time table"):
        METADATA.check_covers([59], ["b.weight", "c.weight"])


GROUP = TimeGroupParams((0, 10), 0.5, 3, 64)


@pytest.mark.parametrize("values", [
    ((5, 5), 0.5, 0, 1), ((-1, 5), 0.5, 0, 1), ((0, 1002), 0.5, 0, 1), ((0, 10), 0.1, 0, 1), ((0, 10), 0.0, 0, 1),
    ((0, 10), -1.0, 0, 1), ((0, 10), float("nan"), 0, 1), ((0, 10), float("inf"), 0, 1), ((0, 10), 0.5, -1, 1),
    ((0, 10), 0.5, 256, 1), ((0, 10), 0.5, 0, 0),
])  # fmt: skip
def test_a_group_that_cannot_be_is_refused(values):
    with pytest.raises(MetadataError):
        TimeGroupParams(*values)


@pytest.mark.parametrize(("change", "message"), [
    ({"groups": ()}, "boundary per group"),
    ({"groups": (GROUP, TimeGroupParams((11, 20), 0.5, 3, 64)), "boundaries": (0.01, 0.02)}, "no timestep between"),
    ({"boundaries": (0.02,)}, "not the ends"),
    ({"groups": (GROUP, TimeGroupParams((10, 20), 0.5, 3, 64)), "boundaries": (1.0, 2.0), "skipped": True}, "ends"),
])  # fmt: skip
def test_a_table_that_does_not_fit_together_is_refused_by_layer(change, message):
    values = {"layer": "a.weight", "boundaries": (normalised_time(10, 1000),), "groups": (GROUP,)} | change
    with pytest.raises(MetadataError, match=message) as raised:
        LayerTimeTable(**values)
    assert "a.weight" in str(raised.value)


def test_a_skipped_table_has_one_group():
    with pytest.raises(MetadataError, match="skipped"):
        LayerTimeTable.of_groups("a", (GROUP, TimeGroupParams((10, 20), 0.5, 3, 64)), skipped=True)


@pytest.mark.parametrize("values", [
    (2, 1000, "minmax", ()),
    (8, 1000, "minmax", (table_of(0, 10), table_of(0, 20))),
    (8, 500, "minmax", (table_of(0, 10),)),
    (4, 1000, "minmax", (LayerTimeTable.of_groups("a", (TimeGroupParams((0, 9), 0.5, 16, 1),)),)),
])  # fmt: skip
def test_metadata_that_contradict_themselves_are_refused(values):
    with pytest.raises(MetadataError):
        TimeAwareQuantMetadata(*values)
