"""Speed of the kernels as ratios to a copy of the same float32 input by as many threads, in one run.

    python tests/bench/bench_kernels.py [--json] [--rows 3072] [--columns 12288] [--threads 2] [--rounds 15]

Each round times the copy and every case one after the other, so that a busy machine slows both; the table
gives the median and the best of the ratios of wall time, and the median ratio of processor time, which neighbours
disturb least. Nothing here asserts a time.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np

from arrowquant_nb import _kernels
from arrowquant_nb.quantizers import QuantizedTensor, quantize_array

TARGETS = {
    "rtn INT4 g64": 1.1,
    "rtn INT8 g64": 1.25,
    "rtn INT2 g64": 1.25,
    "dequantize INT4 g64 to float32": 0.75,
    "uls INT4 g64": 15.0,
}


def parallel_copy(source: np.ndarray, target: np.ndarray, threads: int) -> Callable[[], None]:
    """Two threads copying the float32 input between warm arrays: the unit of every ratio."""
    pool = ThreadPoolExecutor(threads)
    bounds = [len(source) * i // threads for i in range(threads + 1)]

    def run() -> None:
        list(
            pool.map(
                lambda i: np.copyto(target[bounds[i] : bounds[i + 1]], source[bounds[i] : bounds[i + 1]]),
                range(threads),
            )
        )

    return run


def cases(weight: np.ndarray, threads: int) -> dict[str, Callable[[], object]]:
    """Every case writes into buffers that exist and have been touched."""
    out: dict[str, Callable[[], object]] = {}

    def quantize(label: str, array: np.ndarray, bits: int, method: str) -> QuantizedTensor:
        result = quantize_array(array, bits, 64, method, n_threads=threads)
        out[label] = lambda: quantize_array(array, bits, 64, method, n_threads=threads, out=result)
        return result

    def dequantize(label: str, tensor: QuantizedTensor, dtype: str) -> None:
        buffer = tensor.dequantize(dtype, n_threads=threads)
        out[label] = lambda: tensor.dequantize(dtype, out=buffer, n_threads=threads)

    int4 = quantize("rtn INT4 g64", weight, 4, "rtn")
    int8 = quantize("rtn INT8 g64", weight, 8, "rtn")
    int2 = quantize("rtn INT2 g64", weight, 2, "rtn")
    quantize("rtn INT4 g64 from float16", weight.astype(np.float16), 4, "rtn")
    quantize("rtn INT4 g64 from bfloat16", weight.astype(ml_dtypes.bfloat16), 4, "rtn")
    uls = quantize("uls INT4 g64", weight, 4, "uls")
    quantize("mse INT4 g64", weight, 4, "mse")
    quantize("hqq INT4 g64", weight, 4, "hqq")
    quantize("uls INT2 g64", weight, 2, "uls")
    r2q = quantize("r2q INT2 g64", weight, 2, "r2q")
    dequantize("dequantize INT4 g64 to float32", int4, "float32")
    dequantize("dequantize INT8 g64 to float32", int8, "float32")
    dequantize("dequantize INT2 g64 to float32", int2, "float32")
    dequantize("dequantize INT4 g64 to bfloat16", int4, "bfloat16")
    dequantize("dequantize INT4 g64 uls to float32", uls, "float32")
    dequantize("dequantize INT2 g64 r2q to float32", r2q, "float32")
    return out


def measure(rows: int, columns: int, threads: int, rounds: int) -> dict[str, object]:
    """Interleave copy and cases; slow cases run in fewer rounds."""
    rng = np.random.default_rng(0)
    weight = rng.standard_t(5, (rows, columns)).astype(np.float32) * np.float32(0.02)
    copy = parallel_copy(weight, np.zeros_like(weight), threads)
    todo = cases(weight, threads)
    ratios: dict[str, list[tuple[float, float]]] = {label: [] for label in todo}
    copies: list[float] = []

    def timed(run: Callable[[], object]) -> np.ndarray:
        start = time.perf_counter(), time.process_time()
        run()
        return np.array([time.perf_counter() - start[0], time.process_time() - start[1]])

    for k in range(rounds):
        for label, run in todo.items():
            if label.startswith(("uls", "mse", "hqq", "r2q")) and k >= 3:
                continue
            before, case, after = timed(copy), timed(run), timed(copy)
            copies.append(float(before[0]))
            wall, processor = 2 * case / (before + after)
            ratios[label].append((float(wall), float(processor)))
    return {
        "machine": f"{platform.machine()}, {_cpu()}, {threads} threads",
        "versions": f"Python {platform.python_version()}, NumPy {np.__version__}",
        "isa": _kernels.active_isa(),
        "shape": [rows, columns],
        "copy_gb_per_s": weight.nbytes / statistics.median(copies) / 1e9,
        "ratios": {
            label: {
                "median": statistics.median(wall for wall, _ in r),
                "best": min(wall for wall, _ in r),
                "processor_time": statistics.median(processor for _, processor in r),
                "target": TARGETS.get(label),
            }
            for label, r in ratios.items()
        },
    }


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    for name, default in (("rows", 3072), ("columns", 12288), ("threads", 2), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    result = measure(options.rows, options.columns, options.threads, options.rounds)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"{result['machine']}; {result['versions']}; ISA {result['isa']}; {result['shape']} float32")
    print(f"copy: {result['copy_gb_per_s']:.1f} GB/s of input = 1.0\n")
    print(f"{'case':38} {'median':>8} {'best':>8} {'cpu':>8} {'target':>8}")
    for label, row in result["ratios"].items():
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        print(f"{label:38} {row['median']:8.2f} {row['best']:8.2f} {row['processor_time']:8.2f} {target:>8}")


if __name__ == "__main__":
    main()
