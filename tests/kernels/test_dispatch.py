"""Which path runs, what ARROWQUANT_NB_ISA may say, how many threads, and what the compiled module refuses."""

import os
import subprocess
import sys

import numpy as np
import pytest

from arrowquant_nb import _kernels
from arrowquant_nb._kernels import RowsJob, numpy_rows
from arrowquant_nb.errors import ConfigurationError

needs_compiled = pytest.mark.skipif(not _kernels.COMPILED, reason="the kernels are not compiled (ARROWQUANT_NB_PURE=1)")


def run_python(code, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith("ARROWQUANT_NB")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**env, **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_active_isa_is_an_available_one():
    assert _kernels.active_isa() in _kernels.available_isas()
    first, *_ = _kernels.available_isas()
    assert first == "numpy"
    assert (len(_kernels.available_isas()) > 1) == _kernels.COMPILED


@pytest.mark.parametrize("isa", _kernels.available_isas())
def test_the_environment_forces_an_isa(isa):
    done = run_python("from arrowquant_nb import _kernels; print(_kernels.active_isa())", ARROWQUANT_NB_ISA=isa)
    assert done.stdout.strip() == isa, done.stderr


@pytest.mark.parametrize("isa", ["sse9", "AVX2", " avx2", "0"])
def test_an_unknown_isa_is_an_error_that_lists_the_known_ones(isa):
    done = run_python("import arrowquant_nb._kernels", ARROWQUANT_NB_ISA=isa)
    assert done.returncode != 0
    assert "ConfigurationError" in done.stderr
    assert "scalar, avx2, avx512, neon, numpy" in done.stderr


def test_an_isa_that_this_machine_lacks_is_an_error():
    missing = "neon" if "neon" not in _kernels.available_isas() else "avx2"
    done = run_python("import arrowquant_nb._kernels", ARROWQUANT_NB_ISA=missing)
    assert done.returncode != 0
    assert "available: numpy" in done.stderr


def test_waiting_threads_sleep_unless_the_user_says_otherwise():
    code = "import arrowquant_nb._kernels, os; print(os.environ['OMP_WAIT_POLICY'])"
    env = {"OMP_WAIT_POLICY": "active"}
    assert run_python(code, **env).stdout.strip() == "active"
    os_default = run_python("import os; os.environ.pop('OMP_WAIT_POLICY', None); " + code)
    assert os_default.stdout.strip() == "PASSIVE"


def test_threads_follow_the_request_the_cores_and_the_work():
    cores = len(os.sched_getaffinity(0))
    assert _kernels.resolve_threads(3) == 3
    assert _kernels.resolve_threads(0) == cores
    assert _kernels.resolve_threads(0, 100) == 1
    assert _kernels.resolve_threads(0, 1 << 40) == cores
    assert _kernels.resolve_threads(5, 100) == 5


@pytest.mark.parametrize("n_threads", [-1, 1025])
def test_thread_counts_out_of_range(n_threads):
    with pytest.raises(ConfigurationError, match=str(n_threads)):
        _kernels.resolve_threads(n_threads)


@pytest.mark.parametrize("n_threads", [True, 1.0, "2", None])
def test_thread_counts_that_are_no_int(n_threads):
    with pytest.raises(TypeError, match="n_threads"):
        _kernels.resolve_threads(n_threads)


def test_a_forked_child_runs_on_one_thread_and_does_not_hang():
    code = """
import os, warnings
import numpy as np
warnings.simplefilter("ignore")
from arrowquant_nb import _kernels
from arrowquant_nb.quantizers import quantize_array
w = np.random.default_rng(0).standard_normal((600, 512)).astype(np.float32)
before = quantize_array(w, n_threads=2).packed.tobytes()
pid = os.fork()
if pid == 0:
    same = quantize_array(w, n_threads=2).packed.tobytes() == before
    os._exit(0 if same and _kernels.resolve_threads(8) == 1 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert quantize_array(w, n_threads=2).packed.tobytes() == before
print("ok")
"""
    done = run_python(code)
    assert done.stdout.strip() == "ok", done.stderr


@needs_compiled
def test_flushing_denormals_elsewhere_does_not_change_the_bytes():
    """Libraries built with -ffast-math switch the processor to flush-to-zero; the kernels must not care.

    The NumPy path cannot switch it back, so the claim is the compiled kernels' alone.
    """
    torch = pytest.importorskip("torch")
    isa = _kernels.available_isas()[-1]
    w = (np.random.default_rng(0).standard_normal((4, 64)) * 1e-40).astype(np.float32)
    job = _job(w, wide=True)
    _kernels.quantize_rows([job], 1, isa)
    expected = job.packed.tobytes()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        job.packed[:] = 0
        _kernels.quantize_rows([job], 1, isa)
    finally:
        torch.set_flush_denormal(False)
    assert job.packed.tobytes() == expected


def _job(w, wide=False, **changes):
    rows, columns = w.shape
    groups = -(-columns // 64)
    job = RowsJob(
        w, "float32", 4, 64, "rtn", False, None,
        np.zeros((rows, -(-columns // 2)), np.uint8), np.zeros((rows, groups), np.float32 if wide else np.float16),
        np.zeros((rows, -(-groups // 2)), np.uint8), np.zeros((rows, 4)), np.zeros(rows, np.uint8),
    )  # fmt: skip
    return job._replace(**changes)


@needs_compiled
@pytest.mark.parametrize(
    "changes",
    [
        {"packed": np.zeros((4, 31), np.uint8)},
        {"packed": np.zeros((4, 64), np.uint8)[:, ::2]},
        {"scales": np.zeros((4, 2), np.float16)},
        {"zero_points": np.zeros((3, 1), np.uint8)},
        {"sums": np.zeros((4, 3))},
        {"status": np.zeros(5, np.uint8)},
        {"weight": np.zeros((4, 128), np.float32)[:, ::2]},
        {"weight": np.zeros((4, 64), np.float64)},
        {"kind": "float16"},
        {"kind": "int8"},
        {"method": "awq"},
        {"method": "uls"},
        {"method": "r2q"},
        {"method": "r2q", "bit_width": 2},
        {"bit_width": 3},
        {"group_size": 24},
        {"group_size": 1 << 20},
        {"importance": np.zeros(63, np.float32)},
        {"weight": np.zeros((0, 64), np.float32)},
        {"packed": None},
        {"weight": np.zeros(64, np.float32)},
    ],
)
def test_the_compiled_module_refuses_buffers_that_do_not_fit(changes):
    """The quantizers check first; this is the second line, so that no caller can crash the process."""
    w = np.ones((4, 64), np.float32)
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        _kernels.quantize_rows([_job(w), _job(w, **changes)], 1, _kernels.available_isas()[-1])


@needs_compiled
def test_the_compiled_module_refuses_read_only_output():
    job = _job(np.ones((4, 64), np.float32))
    job.packed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _kernels.quantize_rows([job], 1, _kernels.available_isas()[-1])


@needs_compiled
@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, np.zeros((4, 31), np.uint8)),
        (1, np.zeros((4, 1), np.float64)),
        (2, np.zeros((4, 3), np.uint8)),
        (3, "levels"),
        (3, "k"),
        (4, 5),
        (5, 7),
        (6, np.zeros((4, 64), np.float16)),
        (7, "float8"),
    ],
)
def test_dequantize_refuses_buffers_that_do_not_fit(position, value):
    good = [
        np.zeros((4, 32), np.uint8), np.zeros((4, 1), np.float16), np.zeros((4, 1), np.uint8), "zero_point", 4, 64,
        np.zeros((4, 64), np.float32), "float32",
    ]  # fmt: skip
    good[position] = value
    with pytest.raises((ValueError, KeyError)):
        _kernels.dequantize_rows(*good, 1, _kernels.available_isas()[-1])


def test_numpy_packing_round_trips():
    rng = np.random.default_rng(0)
    for bits in (2, 4, 8):
        for n in (1, 2, 3, 4, 5, 33):
            codes = rng.integers(0, 2**bits, (3, n)).astype(np.uint8)
            packed = numpy_rows.pack_codes(codes, bits)
            assert packed.shape == (3, -(-n * bits // 8))
            assert np.array_equal(numpy_rows.unpack_codes(packed, bits, n), codes)
