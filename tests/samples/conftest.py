"""One thread for these tests: on a busy machine the threads of many tiny products only wait for each other."""

import sys

import pytest


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    if torch:
        torch.set_num_threads(1)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield
    if torch:
        torch.set_num_threads(before)
