"""Which ways of storing a layer are tried."""

import pytest

from arrowquant_nb.config.profiles import K_GROUP_SIZES
from arrowquant_nb.core.candidates import candidate_formats


@pytest.mark.parametrize("scales", ["k", "float16"])
def test_every_width_is_there_and_every_way_exists(scales):
    found = candidate_formats(scales, 4096)
    assert {bits for bits, _, _ in found} == {2, 4, 8}
    assert found == sorted(found)
    for bits, size, own in found:
        assert own == "float16" or size in K_GROUP_SIZES[bits]


def test_groups_longer_than_a_row_are_not_tried_twice():
    assert candidate_formats("float16", 32) == [(2, 32, "float16"), (4, 32, "float16"), (8, 64, "float16")]
    assert (4, 64, "float16") in candidate_formats("float16", 48)
