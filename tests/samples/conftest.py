"""One thread for these tests."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def always_one_thread(one_thread):
    """See `one_thread`."""
