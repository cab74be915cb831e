"""Speed and error of products with quantized weights against torch float32, in one run.

    python tests/bench/bench_matmul.py [--size 3072] [--threads 2] [--rounds 15] [--tokens 1,16] [--only "W4 float"]

A quantized layer is called as a model calls it. Each round times torch and every case one after the other, in an
order of its own, so that a busy machine slows all of them. The table gives torch's time over the case's (above 1:
faster): the best and the median of wall time, and the median of processor time over all threads, which neighbours
disturb least. Inputs have heavy tails: channels of very different size, as behind the norms of a diffusion
transformer. The error is that of the output, relative to float32 with the float weight.

Between two cases a product with the float weight empties the caches, as the other layers of a large model do. Threads
sleep between products in torch as in ours. Nothing asserts.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when the first library with OpenMP is loaded

import numpy as np
import torch
from bench_kernels import _cpu

from arrowquant_nb import _kernels, quantize_tensor
from arrowquant_nb.runtime import InputFormat, QuantizedLinear

WEIGHTS = {"W8": (8, 64, "uls", "float16"), "W4": (4, 64, "uls", "float16"), "W4 k": (4, 32, "uls", "k"),
           "W2": (2, 64, "uls", "float16"), "W2 r2q": (2, 64, "r2q", "float16")}  # fmt: skip
RULES = {"float": "float", "A8 token": "per_token", "A8 g64": "per_group"}


def heavy_tailed_inputs(tokens: int, columns: int) -> torch.Tensor:
    """Draw normal values times a log-normal size per channel, one channel in 200 ten times as large."""
    rng = np.random.default_rng(0)
    channels = np.exp(rng.standard_normal(columns))
    channels[rng.permutation(columns)[: columns // 200]] *= 10
    return torch.from_numpy((rng.standard_normal((tokens, columns)) * channels).astype(np.float32))


def heavy_tailed_weight(size: int) -> np.ndarray:
    """Draw Student-t values (5 degrees) times a log-normal size per row, one column in 1000 eight times as large."""
    rng = np.random.default_rng(1)
    weight = rng.standard_t(5, (size, size)) * np.exp(0.3 * rng.standard_normal((size, 1)))
    weight[:, rng.permutation(size)[: size // 1000]] *= 8
    return (weight * 0.02).astype(np.float32)


def layers(weight: np.ndarray) -> dict[str, QuantizedLinear]:
    found = {}
    for name, (bits, group, method, scale_format) in WEIGHTS.items():
        tensor = quantize_tensor(weight, bits, group, method, scale_format=scale_format)
        for label, rule in RULES.items():
            found[f"{name} {label}"] = QuantizedLinear.from_arrays(tensor, inputs=InputFormat(rule))
    return found


def peers(weight: torch.Tensor) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return what torch itself has for 4-bit weights on this processor: bfloat16, groups of 64; bare and in a layer."""
    size, group = len(weight), 64
    scales = (weight.view(size, -1, group).abs().amax(-1) / 7).bfloat16()
    codes = ((weight.view(size, -1, group) / scales[..., None].float()).round().clamp(-8, 7) + 8).int().view(size, size)
    pairs = torch.stack([scales, torch.zeros_like(scales)], -1).transpose(0, 1).contiguous()
    packed = torch._convert_weight_to_int4pack_for_cpu(codes, 2)

    def product_with(packed: torch.Tensor, pairs: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: torch._weight_int4pack_mm_for_cpu(x.bfloat16(), packed, group, pairs)

    layer = torch.nn.Module()
    layer.forward = product_with(packed.clone(), pairs.clone())  # or one would find what the other left in the caches
    return {"torch int4 g64 (bfloat16)": product_with(packed, pairs), "the same in a layer": layer}


def timed(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[float, float]:
    start = time.perf_counter(), time.process_time()
    run(x)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def wall_and_processor(times: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return best wall time, median wall time and median processor time."""
    wall, processor = zip(*times, strict=True)
    return min(wall), statistics.median(wall), statistics.median(processor)


def measure(size: int, tokens: list[int], rounds: int, only: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    weight = heavy_tailed_weight(size)
    dense = torch.nn.Linear(size, size, bias=False)
    dense.weight.copy_(torch.from_numpy(weight))
    cases: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {**layers(weight), **peers(dense.weight.detach())}
    if only:
        cases = {name: case for name, case in cases.items() if name in only}
    result: dict[str, dict[str, dict[str, float]]] = {}
    for n in tokens:
        x = heavy_tailed_inputs(n, size)
        base: list[tuple[float, float]] = []
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, case in random.sample(list(cases.items()), len(cases)):
                base.append(timed(dense, x))
                seen[name].append(timed(case, x))
        exact = dense(x)
        unit = wall_and_processor(base)
        row = {"torch float32": {"best_ms": unit[0] * 1e3, "best": 1.0, "median": 1.0, "processor": 1.0}}
        for name, case in cases.items():
            own = wall_and_processor(seen[name])
            ratios = dict(
                zip(("best", "median", "processor"), (u / o for u, o in zip(unit, own, strict=True)), strict=True)
            )
            row[name] = {
                "best_ms": own[0] * 1e3,
                **ratios,
                "error": float((case(x).float() - exact).norm() / exact.norm()),
            }
        result[str(n)] = row
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tokens", default="1,4,16,64,128,256,1024")
    parser.add_argument("--only", action="append", default=[], help="name of a case in the table; may be repeated")
    for name, default in (("size", 3072), ("threads", 2), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        result = measure(options.size, [int(n) for n in options.tokens.split(",")], options.rounds, options.only)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"{_cpu()}, {options.threads} threads; torch {torch.__version__}; products on {_kernels.active_isa()}")
    for n, row in result.items():
        print(f"\n{n} tokens x {options.size} x {options.size}")
        print(f"{'case':28} {'best ms':>9} {'x torch':>8} {'median':>8} {'cpu':>8} {'error':>9}")
        for name, values in row.items():
            print(
                f"{name:28} {values['best_ms']:9.3f} {values['best']:8.2f} {values['median']:8.2f} "
                f"{values['processor']:8.2f} {values.get('error', float('nan')):9.4f}"
            )


if __name__ == "__main__":
    main()
