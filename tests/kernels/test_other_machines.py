"""The C headers on their own, rows and products: NEON under qemu against the host, and threads under the sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HARNESSES = ("rows_harness.c", "product_harness.c")
FLAGS = [
    "-std=gnu11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    f"-I{HERE.parents[1] / 'kernels'}",
]


def needed(*tools):
    """Skip unless every tool is installed; the message says how to get them."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(
            f"{', '.join(missing)} not installed (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)"
        )


def build(compiler, harness, target, *flags):
    command = [compiler, *FLAGS, *flags, str(HERE / harness), "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(*command, **environment):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="module", params=HARNESSES)
def harness(request):
    return request.param


@pytest.fixture(scope="module")
def host_lines(harness, tmp_path_factory):
    needed("gcc")
    target = tmp_path_factory.mktemp("harness") / "host"
    build("gcc", harness, target, "-O1")
    lines = run(str(target), "scalar")
    # rows: widths, groups, kinds; four methods at each bit width, r2q at one. Products: forms, sizes, counts of tokens.
    assert len(lines) == {"rows_harness.c": 6 * 4 * 3 * (4 * 3 + 1), "product_harness.c": 14 * 5 * 7}[harness]
    return lines


def test_neon_gives_the_bytes_of_the_host(harness, host_lines, tmp_path):
    needed("aarch64-linux-gnu-gcc", "qemu-aarch64")
    build("aarch64-linux-gnu-gcc", harness, tmp_path / "arm", "-O1", "-static")
    for isa in ("scalar", "neon"):
        assert run("qemu-aarch64", str(tmp_path / "arm"), isa) == host_lines


@pytest.mark.soak
def test_no_sanitizer_complains(harness, host_lines, tmp_path):
    needed("gcc")
    flags = ("-O1", "-g", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    build("gcc", harness, tmp_path / "checked", *flags)
    lines = run(str(tmp_path / "checked"))
    assert lines == host_lines * (len(lines) // len(host_lines))
