"""Build the compiled parts: mypyc for `arrowquant_nb/core`, Cython for `kernels/`.

`ARROWQUANT_NB_PURE=1` builds neither; the NumPy path then gives identical bytes.
All metadata lives in pyproject.toml.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

PURE = os.environ.get("ARROWQUANT_NB_PURE") == "1"
# PEP 517 front ends run this file again just for metadata; nothing needs compiling then.
METADATA_ONLY = bool({"egg_info", "dist_info", "sdist", "clean"} & set(sys.argv))
COMPILED = sorted(p.as_posix() for p in Path("arrowquant_nb/core").glob("*.py") if p.name != "__init__.py")
# Bit identity across instruction sets: no contraction into FMA, no reassociation, no denormal flushing.
KERNEL_FLAGS = [
    "-O3",
    "-g0",
    "-std=gnu11",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]


def orchestrator() -> list[Extension]:
    from mypyc.build import mypycify

    return mypycify(
        # Errors outside core are for `make lint`: a newer NumPy's stubs must not break a user's build.
        ["--config-file=pyproject.toml", "--follow-imports=silent", *COMPILED],
        opt_level="3",
        debug_level="0",
        group_name="arrowquant_nb",
        target_dir="build/mypyc",
    )


def kernels() -> list[Extension]:
    from Cython.Build import cythonize

    headers = sorted(h.as_posix() for pattern in ("*.h", "*.pxi") for h in Path("kernels").glob(pattern))
    extensions = [
        Extension(
            f"arrowquant_nb._kernels.{source.stem}",
            [source.as_posix()],
            include_dirs=["kernels"],
            depends=headers,
            extra_compile_args=KERNEL_FLAGS,
            extra_link_args=["-fopenmp"],
        )
        for source in sorted(Path("kernels").glob("*.pyx"))
    ]
    directives = {
        "language_level": 3,
        "boundscheck": False,
        "wraparound": False,
        "cdivision": True,
        "embedsignature": True,
    }
    return cythonize(extensions, build_dir="build/cython", compiler_directives=directives)


if platform.python_implementation() != "CPython" and not PURE:
    raise SystemExit("the compiled parts need CPython; set ARROWQUANT_NB_PURE=1 for the NumPy path")
setup(ext_modules=[] if PURE or METADATA_ONLY else [*orchestrator(), *kernels()])
