"""Events of runs that were never made, of any size: what a dashboard is given, with figures that a test knows."""

from arrowquant_nb.events import AttemptFinished, LayerFinished, LayerStarted, RunFinished, RunStarted
from arrowquant_nb.layer_reports import AttemptReport, LayerReport
from arrowquant_nb.results import PlanRow

ROLES = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear")
SHAPE = (64, 128)
N = SHAPE[0] * SHAPE[1]


def name_of(i):
    return f"transformer_blocks.{i // len(ROLES)}.{ROLES[i % len(ROLES)]}.weight"


def plan_row(i, bits=4, rule="bit_width"):
    return PlanRow(
        name_of(i), SHAPE, "float16", "quantized", "linear", "The requested 4 bits.", rule, bits, N, 2 * N,
        N * bits // 8, "float16", group_size=64, method="gptq-uls",
    )  # fmt: skip


def kept_row(name="proj_out.bias", shape=(64,)):
    return PlanRow(name, shape, "float16", "kept", "norm or bias", "Tiny.", "not a weight", 16, 64, 128, 128)


def attempt(bits, db, *, passed=True, worst=None, cosine=0.99):
    return AttemptReport(
        bits, "gptq-uls", "minimum", cosine, db - 10, 1e-5, 0.98, passed, db, f"INT{bits} gives {db:.2f} dB.", 64,
        db - 2 if worst is None else worst,
    )  # fmt: skip


def report(i, db, bits=4, *, attempts=None, requested=4, rule="bit_width"):
    tries = attempts or (attempt(bits, db),)
    return LayerReport(
        name_of(i), SHAPE, "float16", "quantized", "linear", "The requested 4 bits.", rule, requested, bits, N, 2 * N,
        N * bits // 8, 0.2, tuple(tries), method="gptq-uls", grid="minimum", group_size=64, sqnr_db=db - 10,
        cosine=0.99, mse=1e-5, scale_format="float16",
    )  # fmt: skip


def gates(mean=20.0, worst=16.0):
    return [
        {"gate": "weight_cosine", "value": 0.99, "threshold": 0.98, "verdict": "passed"},
        {"gate": "output_sqnr_db", "value": 30.0, "threshold": mean, "verdict": "passed"},
        {"gate": "output_worst_group_sqnr_db", "value": 28.0, "threshold": worst, "verdict": "passed"},
    ]


def decibels_of(i):
    """A different figure for every layer, none in model order."""
    return 21.0 + (i * 37 % 101) / 7


def started(n, **settings):
    config = {"deployment_profile": "local", **settings}
    rows = [*(plan_row(i) for i in range(n)), kept_row()]
    return RunStarted(n_layers=n + 1, rows=[r.to_record() for r in rows], model="made-up", config=config)


def layer_events(i, n, db=None, t_s=1.0, **more):
    found = report(i, decibels_of(i) if db is None else db, **more)
    return [
        LayerStarted(name=name_of(i), index=i, n_layers=n, bit_width=4, t_s=t_s),
        AttemptFinished(
            name=name_of(i), bit_width=4, method="gptq-uls", passed=True, sentence="", gates=gates(), t_s=t_s
        ),
        LayerFinished(name=name_of(i), index=i, n_layers=n, report=found.to_record(), t_s=t_s),
    ]  # fmt: skip


def run_events(n, *, finished=True):
    events = [started(n)]
    for i in range(n):
        events += layer_events(i, n, t_s=1.0 + i / 10)
    return [*events, RunFinished(summary={"model_size_mb": 1.25}, t_s=2 + n / 10)] if finished else events
