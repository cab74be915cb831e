"""The C headers on their own: NEON under qemu against the host, and a run under the sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = HERE / "neon_harness.c"
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


def build(compiler, target, *flags):
    done = subprocess.run(
        [compiler, *FLAGS, *flags, str(SOURCE), "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def run(*command, **environment):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def host_lines(tmp_path_factory):
    needed("gcc")
    target = tmp_path_factory.mktemp("harness") / "host"
    build("gcc", target, "-O1")
    return run(str(target), "scalar")


def test_neon_gives_the_bytes_of_the_host(host_lines, tmp_path):
    needed("aarch64-linux-gnu-gcc", "qemu-aarch64")
    build("aarch64-linux-gnu-gcc", tmp_path / "arm", "-O1", "-static")
    # widths, groups, kinds; four methods at each bit width, r2q at one
    assert len(host_lines) == 6 * 4 * 3 * (4 * 3 + 1)
    for isa in ("scalar", "neon"):
        assert run("qemu-aarch64", str(tmp_path / "arm"), isa) == host_lines


@pytest.mark.soak
def test_no_sanitizer_complains(host_lines, tmp_path):
    needed("gcc")
    build("gcc", tmp_path / "checked", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    lines = run(str(tmp_path / "checked"))
    assert lines == host_lines * (len(lines) // len(host_lines))
