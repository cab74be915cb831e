"""What quantization costs the bundled models when torch runs them: quality and seconds per step, by modality.

Every model is loaded by its own class of diffusers or transformers; its linear layers are then replaced by quantized
ones. Prints one Markdown table. About ten minutes on two cores.

    python tests/bench/bench_generation.py [--samples 20] [--trajectories 16] [MODEL ...]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import arrowquant_nb as aq
from arrowquant_nb import samples
from arrowquant_nb.diffusers import load_sample, through_torch

ROUNDS = 3
# Label, settings of the run, how the loaded layers round their inputs. All block layers at one width.
WAYS = {
    "W8": ({"bit_width": 8}, None),
    "W4": ({"bit_width": 4}, None),
    "W2": ({"bit_width": 2}, None),
    "W4A8 static": ({"bit_width": 4, "activation_bit_width": 8, "num_time_groups": 1}, None),
    "W4A8 time groups": ({"bit_width": 4, "activation_bit_width": 8, "num_time_groups": 10}, None),
    "W4A8 per token": ({"bit_width": 4, "activation_bit_width": 8, "num_time_groups": 10}, "per_token"),
}


def seconds_per_step(models, steps):
    """Best of the rounds for each model, taken in turns: mean seconds of one network call."""
    best = dict.fromkeys(models, float("inf"))
    for _ in range(ROUNDS):
        for label, model in models.items():
            start = time.perf_counter()
            for step in steps:
                model.forward(step)
            best[label] = min(best[label], (time.perf_counter() - start) / len(steps))
    return best


def figures(name, found):
    """The figures of a modality in two columns."""
    if "kl" in found:
        return f"KL {found['kl']:.4f}", f"top-1 {found['top1_agreement']:.3f}, NELBO {found['nelbo']:.3f}"
    other = (
        f"Frechet {found['frechet_distance']:.2f}"
        if "frechet_distance" in found
        else f"log-spectral {found['log_spectral_distance_db']:.2f} dB"
    )
    return f"PSNR {found['sample_psnr_db']:.1f} dB", other


def rows(name, n, trajectories, folder):
    models = {"FP32": through_torch(name, load_sample(name))}
    stored = {"FP32": ""}
    for label, (settings, inputs) in WAYS.items():
        output = folder / f"{name}-{'-'.join(f'{k}{v}' for k, v in settings.items())}"
        if not output.exists():
            config = aq.DiffusionQuantConfig(calibration_samples=trajectories, **settings)
            aq.ArrowQuantV2(config).quantize_diffusion_model(name, output)
        models[label] = through_torch(name, aq.load_quantized(load_sample(name), output, inputs=inputs))
        with aq.open_quantized(output) as opened:
            quantized = [opened[t] for t in opened if not opened[t].kept]
            bits = sum(t.bits_per_weight * np.prod(t.shape) for t in quantized) / sum(
                np.prod(t.shape) for t in quantized
            )
            stored[label] = f"{bits:.2f}"
    seconds = seconds_per_step(models, list(samples.runnable(name).trajectories(n, 100))[::5])
    for label, model in models.items():
        found = samples.evaluate(name, n=n, seed=100, model=model)
        first, second = figures(name, found)
        sqnr = f"{found['network_sqnr_db']:.1f}"
        yield f"| {name} | {label} | {stored[label]} | {sqnr} | {first} | {second} | {seconds[label] * 1000:.1f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(samples.names()))
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--trajectories", type=int, default=16)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.samples} samples per model")
    print(
        "| model | way | bits per weight | network SQNR, dB | output | | ms per step |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            for row in rows(name, options.samples, options.trajectories, Path(folder)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
