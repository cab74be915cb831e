"""Rows of the model tables: every block linear of a bundled model at one width, and what that costs at its output.

Ours, calibrated with several seeds or without; every peer's formats over the same matrices; two grids by formula. All
are judged on the same trajectories by `samples.evaluate`.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import formulas
import numpy as np
import peer_runs
from environments import Peer
from threadpoolctl import threadpool_limits

import arrowquant_nb as aq

EVALUATION_SEED = 100
TRAJECTORIES = 16
"""Samples that a layer's inputs are captured on."""
OPEN_GATES = {"min_accuracy": 0.0, "min_output_sqnr_db": -100.0}
"""No layer is raised: what one width alone can do."""

# label, bits, group, method, scale_format
FREE = (
    ("rtn g128", 8, 128, "rtn", "float16"),
    ("uls g64", 8, 64, "uls", "float16"),
    ("rtn g32", 4, 32, "rtn", "float16"),
    ("uls g32", 4, 32, "uls", "float16"),
    ("uls k g32", 4, 32, "uls", "k"),
    ("rtn g32", 2, 32, "rtn", "float16"),
    ("uls g32", 2, 32, "uls", "float16"),
    ("uls k g16", 2, 16, "uls", "k"),
)
CALIBRATED = (
    ("gptq g64", 4, 64, "gptq", "float16"),
    ("gptq g32", 4, 32, "gptq", "float16"),
    ("gptq k g32", 4, 32, "gptq", "k"),
    ("gptq g32", 2, 32, "gptq", "float16"),
    ("gptq k g16", 2, 16, "gptq", "k"),
    ("auto k g16", 2, 16, "auto", "k"),
)
FORMULAS = (
    ("NF4 g32, by formula", 4, 32, lambda w: formulas.nf4(w, 32), 4 + 16 / 32),
    ("K-quant search g32, by formula", 4, 32, lambda w: formulas.k_search(w, 4, 32), 4 + 32 / 32),
    ("K-quant search g32, by formula", 2, 32, lambda w: formulas.k_search(w, 2, 32), 2 + 32 / 32),
)


def rows(
    name: str,
    peers: Mapping[Peer, tuple[Path | None, str]],
    scratch: Path,
    seeds: list[int],
    n: int,
    bits: tuple[int, ...],
) -> Iterator[dict[str, object]]:
    """Yield one row per method; figures are lists with a value per calibration seed."""
    trained = dict(aq.samples.runnable(name).weights)
    layers = [row.name for row in aq.ArrowQuantV2().plan(name).rows if row.action == "quantized"]
    matrices = {layer: np.ascontiguousarray(trained[layer], np.float32) for layer in layers}
    for cases, tried in ((FREE, [0]), (CALIBRATED, seeds)):
        for case in cases:
            if case[1] in bits:
                yield _ours(name, layers, case, tried, n)
                if cases is CALIBRATED and case[0] in ("gptq k g32", "gptq k g16"):
                    yield _ours(name, [], case, tried[:1], n)
    for label, width, _, decode, bits_per_weight in FORMULAS:
        if width in bits:
            decoded = {layer: decode(matrix) for layer, matrix in matrices.items()}
            yield _row("formula", label, width, bits_per_weight, [_figures(name, trained | decoded, n)])
    for peer, (python, note) in peers.items():
        answers = list(peer_runs.answers(peer, python, note, matrices, scratch / name, timed=False))
        yield from _of_peer(name, answers, trained, matrices, n, bits)


def chosen(
    name: str, cases: tuple[tuple[str, int, int, str, str], ...], seeds: list[int], n: int
) -> Iterator[dict[str, object]]:
    """Yield rows of some of our methods alone, all block linears."""
    layers = [row.name for row in aq.ArrowQuantV2().plan(name).rows if row.action == "quantized"]
    for case in cases:
        yield _ours(name, layers, case, seeds, n)


def _ours(
    name: str, layers: list[str], case: tuple[str, int, int, str, str], seeds: list[int], n: int
) -> dict[str, object]:
    """Quantize with each seed; no layers are those that the policy keeps at the width."""
    label, width, group, method, scale_format = case
    figures, bits_per_weight = [], 0.0
    for seed in seeds:
        config = aq.DiffusionQuantConfig(
            bit_width=width,
            group_size=group,
            method=method,
            scale_format=scale_format,
            rotation="none",
            low_rank=0,
            seed=seed,
            calibration_samples=TRAJECTORIES,
            layer_bit_widths=dict.fromkeys(layers, width),
            # By default policy all is done that a run does; elsewhere the weights alone are compared, as they are.
            enable_spatial=not layers,
            **OPEN_GATES,
        )
        with tempfile.TemporaryDirectory() as folder:
            calibration = None if method in ("gptq", "auto") else "none"
            quantizer = aq.ArrowQuantV2(config)
            result = quantizer.quantize_diffusion_model(name, Path(folder, "model"), calibration=calibration)
            with aq.open_quantized(result.quantized_path) as model:
                figures.append(_figures(name, model.weights(), n))
        bits_per_weight = result.bits_per_weight
    row = _row("arrowquant_nb", label, width, bits_per_weight, figures)
    return row | {"policy": "all block linears" if layers else "by default policy"}


def _of_peer(
    name: str,
    answers: list[dict[str, object]],
    trained: Mapping[str, np.ndarray],
    matrices: Mapping[str, np.ndarray],
    n: int,
    bits: tuple[int, ...],
) -> Iterator[dict[str, object]]:
    formats = dict.fromkeys((a["by"], a["format"], a.get("bits")) for a in answers)
    for by, label, width in formats:
        mine = [a for a in answers if (a["by"], a["format"], a.get("bits")) == (by, label, width)]
        failed = next((a["failed"] for a in mine if "failed" in a), None)
        if width is not None and width not in bits:
            continue
        if failed is not None:
            yield {"by": by, "format": label, "bits": width, "failed": failed}
            continue
        sizes = {str(a["array"]): matrices[str(a["array"])].size for a in mine}
        total = sum(sizes[str(a["array"])] * float(a["bits_per_weight"]) for a in mine)
        decoded = {str(a["array"]): np.load(str(a["file"])) for a in mine}
        yield _row(str(by), str(label), int(width), total / sum(sizes.values()), [_figures(name, trained | decoded, n)])


def _figures(name: str, weights: Mapping[str, object], n: int) -> dict[str, float]:
    with threadpool_limits(1, user_api="blas"):
        figures = aq.samples.evaluate(name, weights, n, EVALUATION_SEED)
    return {k: float(v) for k, v in figures.items() if k not in ("n", "steps", "seed")}


def _row(by: str, label: str, bits: int, bits_per_weight: float, figures: list[dict[str, float]]) -> dict[str, object]:
    joined = {key: [part[key] for part in figures] for key in figures[0]}
    return {"by": by, "format": label, "bits": bits, "bits_per_weight": bits_per_weight, **joined}
