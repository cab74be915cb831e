"""A FLUX-shaped transformer of about one billion random weights: size, loading, memory and seconds per step.

Builds it in bfloat16, quantizes it data-free, exports it, and loads every form in a process of its own: exports with
`from_pretrained`, master copies with `load_quantized` into a model on the meta device. Loading stands beside reading
the same files into memory, in turns, the best of each. Needs 8 GB of disk and 6 GB of memory; figures of quality are
not taken, random weights have none.

    python tests/bench/bench_flux.py [--tokens 256] [--single-blocks 4] [--folder FOLDER] [--load-only]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

import arrowquant_nb as aq
import arrowquant_nb.diffusers
from arrowquant_nb.runtime.input_format import InputFormat
from arrowquant_nb.runtime.quantized_layer import QuantizedLayer

TEXT_TOKENS = 64
CALLS = 2
LOADINGS = 3


def build(folder, single_blocks):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = FluxTransformer2DModel(num_layers=1, num_single_layers=single_blocks, guidance_embeds=True)
    model.save_pretrained(folder)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters")


def inputs(model, tokens):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    side = int(tokens**0.5)
    places = torch.arange(side, dtype=torch.float32)
    grid = torch.cartesian_prod(torch.zeros(1), places, places)
    config = model.config
    return {
        "hidden_states": noise(1, side * side, config.in_channels),
        "encoder_hidden_states": noise(1, TEXT_TOKENS, config.joint_attention_dim),
        "pooled_projections": noise(1, config.pooled_projection_dim),
        "timestep": torch.tensor([1.0], dtype=torch.bfloat16), "guidance": torch.tensor([3.5], dtype=torch.bfloat16),
        "img_ids": grid, "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }  # fmt: skip


def peak_mb():
    """Most memory that this process has had, since it was started."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e3


def load(folder, dtype):
    if not (folder / "manifest.json").exists():
        return FluxTransformer2DModel.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    config = FluxTransformer2DModel.load_config(folder)
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config).to(dtype)
    return aq.load_quantized(model, folder)


def weight_files(folder):
    return [file for file in folder.iterdir() if file.suffix in (".parquet", ".safetensors")]


def read(folder):
    return [file.read_bytes() for file in weight_files(folder)]


def timed(action, *given):
    """Return what an action gives, and its seconds and those of the processor."""
    start, work = time.perf_counter(), time.process_time()
    return action(*given), (time.perf_counter() - start, time.process_time() - work)


def measure(folder, tokens, dtype, inputs_as):
    """Load and call one form, in this process."""
    before = peak_mb()
    model, loading = timed(load, folder, getattr(torch, dtype))
    loaded, loadings, readings = peak_mb(), [loading], []
    for _ in range(LOADINGS - 1):
        del model
        readings.append(timed(read, folder)[1])
        model, loading = timed(load, folder, getattr(torch, dtype))
        loadings.append(loading)
    if inputs_as == "float":
        for module in model.modules():
            if isinstance(module, QuantizedLayer):
                module.inputs = InputFormat()
    call, seconds = inputs(model, tokens), []
    call = {name: value.to(model.dtype) if value.dtype == torch.bfloat16 else value for name, value in call.items()}
    with torch.no_grad():
        for _ in range(CALLS if tokens else 0):
            start = time.perf_counter()
            model(**call)
            seconds.append(time.perf_counter() - start)
    found = {"load": min(loadings), "read": min(readings), "load_mb": loaded - before, "peak_mb": peak_mb() - before}
    found["step_s"] = min(seconds, default=float("nan"))
    print(json.dumps(found))


def table(folder, options):
    source = folder / "flux"
    build(source, options.single_blocks)
    forms = {"float32": (source, "float32", "stored"), "bfloat16": (source, "bfloat16", "stored")}
    for bit_width in (8, 4):
        master, exported = folder / f"master-{bit_width}", folder / f"int{bit_width}"
        config = aq.DiffusionQuantConfig(bit_width=bit_width, method="rtn", activation_bit_width=8)
        start = time.perf_counter()
        aq.ArrowQuantV2(config).quantize_diffusion_model(source, master, calibration="none")
        print(f"INT{bit_width}: quantized in {time.perf_counter() - start:.1f} s", end="")
        start = time.perf_counter()
        aq.export_model(master, "diffusers", exported)
        print(f", exported in {time.perf_counter() - start:.1f} s")
        forms[f"W{bit_width}A8, load_quantized"] = (master, "bfloat16", "stored")
        forms[f"W{bit_width}"] = (exported, "bfloat16", "float")
        forms[f"W{bit_width}A8 per token"] = (exported, "bfloat16", "stored")
    print("| form | files, MB | load, s (processor) | read, s (processor) | memory, MB | peak, MB | seconds per step |")
    print("|---|---|---|---|---|---|---|")
    for label, (path, dtype, rounding) in forms.items():
        command = [sys.executable, __file__, "--measure", path, "--dtype", dtype, "--inputs", rounding]
        command += ["--tokens", "0" if options.load_only else str(options.tokens)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        nbytes = sum(file.stat().st_size for file in weight_files(path))
        memory = f"{found['load_mb']:.0f} | {found['peak_mb']:.0f}"
        times = " | ".join("{:.2f} ({:.2f})".format(*found[action]) for action in ("load", "read"))
        print(f"| {label} | {nbytes / 1e6:.0f} | {times} | {memory} | {found['step_s']:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--single-blocks", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where the models are made; default a temporary folder")
    parser.add_argument("--load-only", action="store_true", help="take no step")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="bfloat16", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", default="stored", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.tokens, options.dtype, options.inputs)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.tokens} + {TEXT_TOKENS} tokens")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        table(Path(folder), options)


if __name__ == "__main__":
    main()
