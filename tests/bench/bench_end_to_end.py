"""From a safetensors file to committed Parquet: rate, memory and opening time, each beside what it is measured against.

    python tests/bench/bench_end_to_end.py [--json] [--gib 2] [--rounds 3] [--dtype bfloat16]
        [--bit-width 4] [--method rtn] [--folder DIR]

The reference writes the very output files of the run from ready buffers: temporary file, write, fsync, rename,
fsync of the folder. Run and reference alternate, so that a busy machine or disk slows both; the table gives medians.
Memory is the growth of private memory (USS) of a fresh process over its imported, warmed-up baseline, polled in a run
of its own: reading it walks the page tables, which takes a good part of a core from whatever is timed.
Nothing here asserts a time.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHUNK = 1 << 22
TARGETS = {"rate_ratio": 0.8, "uss_growth_mb": 300.0, "open_ms": 50.0}
DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}
SHAPES = ((3072, 12288), (12288, 3072), (3072, 3072))  # a feed-forward pair and a projection, as in large transformers

RUN = """
import json, sys, threading, time
import psutil
import arrowquant_nb.api, arrowquant_nb.storage.parquet_v2
from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig, build_info
tiny, source, output, settings, watched = sys.argv[1:]
quantizer = ArrowQuantV2(DiffusionQuantConfig(**json.loads(settings)))
quantizer.quantize_diffusion_model(tiny, output + "-tiny")
me = psutil.Process()
baseline = peak = me.memory_full_info().uss
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, me.memory_full_info().uss)
thread = threading.Thread(target=watch)
if watched == "watched":
    thread.start()
began, worked = time.perf_counter(), time.process_time()
result = quantizer.quantize_diffusion_model(source, output)
seconds, processor = time.perf_counter() - began, time.process_time() - worked
done.set()
if watched == "watched":
    thread.join()
print(json.dumps({"seconds": seconds, "processor_s": processor, "uss_baseline": baseline, "uss_peak": peak,
                  "isa": build_info()["isa"], "sqnr_db": result.sqnr_db,
                  "container": result.container_nbytes, "payload": result.payload_nbytes}))
"""
OPEN = """
import sys, time
import arrowquant_nb.api
from arrowquant_nb import open_quantized
times = []
for _ in range(5):
    began = time.perf_counter()
    model = open_quantized(sys.argv[1])
    first = next(iter(model))
    model[first].shape
    times.append(time.perf_counter() - began)
    model.close()
print(times[0], sorted(times)[2])
"""


def write_source(folder: Path, nbytes: int, dtype: str) -> int:
    """Write a component folder of about `nbytes`; return the bytes of its tensors."""
    folder.mkdir()
    tag, item = DTYPES[dtype]
    block = sum(item * r * c for r, c in SHAPES)
    names = {
        f"transformer_blocks.{k}.ff.net.{i}.weight": shape
        for k in range(max(1, round(nbytes / block)))
        for i, shape in enumerate(SHAPES)
    }
    header, offset = {}, 0
    for name, shape in names.items():
        end = offset + item * shape[0] * shape[1]
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = (np.random.default_rng(0).standard_t(5, CHUNK // item) * 0.02).astype(np.float32)
    noise = (values if item == 4 else (values.view(np.uint32) >> 16).astype(np.uint16)).tobytes()
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, len(noise)):
            stream.write(noise[: offset - start])
    (folder / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    return offset


def warm(path: Path) -> None:
    """Read a file once, so that it stands in the page cache."""
    with path.open("rb", buffering=0) as stream:
        while stream.read(CHUNK):
            pass


def write_ready(model: Path, target: Path) -> float:
    """Write copies of all files of a model from memory, each with fsync and rename; return seconds."""
    target.mkdir()
    contents = {p.relative_to(model): p.read_bytes() for p in sorted(model.rglob("*")) if p.is_file()}
    folder = os.open(target, os.O_RDONLY)
    began = time.perf_counter()
    for name, content in contents.items():
        final = target / name
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}")
        with temporary.open("wb", buffering=0) as stream:
            stream.write(content)
            os.fsync(stream.fileno())
        temporary.replace(final)
        os.fsync(folder)
    seconds = time.perf_counter() - began
    os.close(folder)
    return seconds


def measure(gib: float, rounds: int, dtype: str, settings: dict[str, object], parent: Path | None) -> dict[str, object]:
    """Alternate runs and references."""
    with tempfile.TemporaryDirectory(prefix="arrowquant-bench-", dir=parent) as scratch:
        root = Path(scratch)
        nbytes = write_source(root / "large", int(gib * 2**30), dtype)
        write_source(root / "tiny", 1, dtype)

        def run(watched: str) -> dict[str, float]:
            warm(root / "large" / "diffusion_pytorch_model.safetensors")
            for earlier in ("model", "model-tiny"):
                shutil.rmtree(root / earlier, ignore_errors=True)
            arguments = [str(root / n) for n in ("tiny", "large", "model")] + [json.dumps(settings), watched]
            done = subprocess.run([sys.executable, "-c", RUN, *arguments], check=True, capture_output=True, text=True)
            return json.loads(done.stdout)

        memory = run("watched")
        runs, references = [], []
        for _ in range(rounds):
            runs.append(run("unwatched"))
            references.append(write_ready(root / "model", root / "copy"))
            shutil.rmtree(root / "copy")
        opened = subprocess.run(
            [sys.executable, "-c", OPEN, str(root / "model")], check=True, capture_output=True, text=True
        )
        stored = sum(p.stat().st_size for p in (root / "model").rglob("*") if p.is_file())
    first, again = (1e3 * float(v) for v in opened.stdout.split())
    ratios = [reference / run["seconds"] for run, reference in zip(runs, references, strict=True)]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, NumPy {np.__version__}",
        "isa": runs[0]["isa"],
        "dtype": dtype,
        "settings": settings,
        "source_gb": nbytes / 1e9,
        "stored_gb": stored / 1e9,
        "run_s": statistics.median(r["seconds"] for r in runs),
        "processor_s": statistics.median(r["processor_s"] for r in runs),
        "reference_s": statistics.median(references),
        "source_gb_per_s": nbytes / 1e9 / statistics.median(r["seconds"] for r in runs),
        "rate_ratio": statistics.median(ratios),
        "rate_ratio_best": max(ratios),
        "uss_baseline_mb": memory["uss_baseline"] / 1e6,
        "uss_growth_mb": (memory["uss_peak"] - memory["uss_baseline"]) / 1e6,
        "open_first_ms": first,
        "open_ms": again,
        "container_percent": 100 * runs[0]["container"] / runs[0]["payload"],
        "sqnr_db": runs[0]["sqnr_db"],
    }


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the source")
    parser.add_argument("--bit-width", type=int, default=4)
    parser.add_argument("--method", default="rtn")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to write; default the temporary folder")
    options = parser.parse_args()
    settings = {
        "bit_width": options.bit_width,
        "method": options.method,
        "num_threads": options.threads,
        "min_accuracy": 0.5,
    }
    result = measure(options.gib, options.rounds, options.dtype, settings, options.folder)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    what = f"{options.method} INT{options.bit_width} from {options.dtype}"
    print(f"{result['machine']}; {result['versions']}; ISA {result['isa']}; {what}")
    print(f"{'':46}{'measured':>12}{'target':>10}")
    for label, key, unit in (
        ("source tensors", "source_gb", "GB"),
        ("stored, all files", "stored_gb", "GB"),
        ("run", "run_s", "s"),
        ("  processor time of all threads", "processor_s", "s"),
        ("source per second", "source_gb_per_s", "GB/s"),
        ("same files written and fsynced from memory", "reference_s", "s"),
        ("rate of the run over that", "rate_ratio", ""),
        ("  its best round", "rate_ratio_best", ""),
        ("growth of private memory", "uss_growth_mb", "MB"),
        ("opening, first in a process", "open_first_ms", "ms"),
        ("opening", "open_ms", "ms"),
        ("container over payload", "container_percent", "%"),
    ):
        target = TARGETS.get(key, "")
        print(f"{label:46}{result[key]:12.3f}{target:>10} {unit}")


if __name__ == "__main__":
    main()
