"""Memory of one's own: as long as asked for, zeros, writable, alive with its views."""

import numpy as np
import pytest

from arrowquant_nb.storage.fresh_memory import fresh_memory


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4097, 1 << 20])
def test_memory_is_zeros_of_the_wanted_length_and_outlives_its_name(nbytes):
    array = np.frombuffer(fresh_memory(nbytes), np.uint8)
    assert array.shape == (nbytes,)
    assert not array.any()
    array[:] = 7
    assert int(array.sum(dtype=np.int64)) == 7 * nbytes
