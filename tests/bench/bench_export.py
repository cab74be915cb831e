"""How fast a quantized model is exported to each target, beside writing the very bytes of the export from memory.

    python tests/bench/bench_export.py [--json] [--gib 0.25] [--rounds 3] [--bit-width 4] [--scale-format k]

Targets and references alternate; the table gives the best round of each and the growth of private memory (USS) of the
process, which stays near one tensor. Nothing here asserts a time.
"""

import argparse
import contextlib
import json
import logging
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from bench_end_to_end import write_ready, write_source

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig, export_model

TARGETS = {"diffusers": "out", "safetensors": "out", "gguf": "out.gguf", "comfy": "out.safetensors"}


@contextlib.contextmanager
def peak_memory():
    """Yield a list that holds the growth of private memory when the block has ended."""
    me, growth, done = psutil.Process(), [], threading.Event()
    baseline = peak = me.memory_full_info().uss

    def watch():
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, me.memory_full_info().uss)

    thread = threading.Thread(target=watch)
    thread.start()
    yield growth
    done.set()
    thread.join()
    growth.append((peak - baseline) / 1e6)


def remove(path: Path) -> None:
    """Remove a folder or a file, if there is one."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def measure(gib: float, rounds: int, settings: dict[str, object], parent: Path | None) -> dict[str, dict[str, float]]:
    """Export in turn to every target, each followed by writing the same bytes."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="arrowquant-bench-", dir=parent) as scratch:
        root = Path(scratch)
        nbytes = write_source(root / "source", int(gib * 2**30), "bfloat16")
        ArrowQuantV2(DiffusionQuantConfig(**settings)).quantize_diffusion_model(root / "source", root / "model")
        for _ in range(rounds):
            for target, name in TARGETS.items():
                output = root / "place" / name
                with peak_memory() as growth:
                    began, cpu_began = time.perf_counter(), time.process_time()
                    export_model(root / "model", target, output)
                    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
                reference = write_ready(root / "place", root / "copy")
                row = found.setdefault(target, {"seconds": seconds, "reference": reference, "uss_growth_mb": 0.0})
                row["cpu"] = min(row.get("cpu", cpu), cpu)
                row["seconds"], row["reference"] = min(row["seconds"], seconds), min(row["reference"], reference)
                row["uss_growth_mb"] = max(row["uss_growth_mb"], *growth)
                row["source_gb_per_s"] = nbytes / 1e9 / row["seconds"]
                remove(root / "place")
                remove(root / "copy")
    return found


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--gib", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bit-width", type=int, default=4)
    parser.add_argument("--scale-format", default="k")
    parser.add_argument("--folder", type=Path, help="where to write; default the temporary folder")
    options = parser.parse_args()
    logging.getLogger("arrowquant_nb").setLevel(logging.ERROR)
    group = {2: 16, 4: 32, 8: 64}[options.bit_width]
    settings = {
        "bit_width": options.bit_width, "group_size": group, "scale_format": options.scale_format, "method": "uls",
        "min_accuracy": 0.5,
    }  # fmt: skip
    result = measure(options.gib, options.rounds, settings, options.folder)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"INT{options.bit_width} {options.scale_format} g{group}, {options.gib} GiB, best of {options.rounds}")
    print(f"{'target':14}{'seconds':>10}{'CPU-s':>8}{'source GB/s':>13}{'same bytes written':>20}{'memory MB':>11}")
    for target, row in result.items():
        print(
            f"{target:14}{row['seconds']:10.2f}{row['cpu']:8.2f}{row['source_gb_per_s']:13.2f}{row['reference']:19.2f}s"
            f"{row['uss_growth_mb']:11.0f}"
        )


if __name__ == "__main__":
    main()
