"""Methods with a grid of their own, from the plan to the file and back: r2q and hqq."""

import json

import numpy as np
import pytest

from arrowquant_nb import (
    ArrowQuantV2,
    ConfigurationError,
    DiffusionOrchestrator,
    DiffusionQuantConfig,
    ParquetV2Extended,
    ValidationError,
    open_checkpoint,
    open_quantized,
    quantize_tensor,
    result_tables,
)
from tests.conftest import dit_tensors, write_checkpoint

Q = "transformer_blocks.0.attn1.to_q.weight"
R2Q = {"bit_width": 2, "method": "r2q", "min_accuracy": 0.0}
HQQ = {"bit_width": 4, "method": "hqq", "min_accuracy": 0.0}
ONLY_TWO_BITS = "r2q exists at 2 bits only, so INT{} uses uls"


@pytest.mark.parametrize(("settings", "grid"), [(R2Q, "levels"), (HQQ, "minimum")])
def test_the_plan_is_what_is_stored_and_read_back(models, settings, grid):
    folder = models.quantized("dit", **settings)
    rows = {r.name: r for r in ArrowQuantV2(DiffusionQuantConfig(**settings)).plan(models.dit).rows}
    n_found = 0
    with open_quantized(folder, "full") as model, open_checkpoint(models.dit) as checkpoint:
        assert {n: r.nbytes for n, r in rows.items()} == {n: t.nbytes for n, t in model.items()}
        assert {n: r.method for n, r in rows.items()} == {n: t.method for n, t in model.items()}
        for name, tensor in model.items():
            if tensor.bit_width != settings["bit_width"]:
                continue
            n_found += 1
            assert (tensor.method, tensor.grid) == (settings["method"], grid)
            weight = checkpoint.read_rows(name, 0, checkpoint.entries[name].rows).reshape(tensor.shape)
            expected = quantize_tensor(weight, settings["bit_width"], 64, settings["method"])
            np.testing.assert_array_equal(model.dequantize(name), expected.dequantize())
    assert n_found == (14 if grid == "levels" else 16)  # at 2 bits policy raises two more
    assert ArrowQuantV2().validate_quality(models.dit, folder).passed


def test_levels_lie_in_the_file_as_pairs_and_offsets(models):
    with open_quantized(models.quantized("dit", **R2Q)) as model:
        [row] = ParquetV2Extended(model.path / model[Q].file).rows(Q)
        # 128 rows of two groups: two bits a weight, two float16 amplitudes and one float16 offset a group.
        assert (len(row["data"]), len(row["scales"]), len(row["zero_points"])) == (128 * 32, 128 * 2 * 4, 128 * 2 * 2)
        assert model[Q].bits_per_weight == 2 + 48 / 64
        [(_, tile)] = model[Q].tiles()
        assert tile.scales.shape == (128, 2, 2)
        assert (tile.scales[..., 0] >= tile.scales[..., 1]).all()
        codes = np.frombuffer(row["data"], np.uint8).reshape(128, 32)[:, :, None] >> np.array([0, 2, 4, 6]) & 3
        group = np.repeat(np.arange(2), 64)
        a1, a2 = (tile.scales[..., k].astype(np.float32)[:, group] for k in (0, 1))
        codes = codes.reshape(128, 128)
        mu = tile.zero_points.astype(np.float32)[:, group]
        value = (mu + np.where(codes & 2, a1, -a1)) + np.where(codes & 1, a2, -a2)
        np.testing.assert_array_equal(value, model.dequantize(Q))


def test_large_and_small_weights_get_float32_levels(tmp_path):
    tensors = dit_tensors(n_blocks=1, dtype="float32")
    tensors[Q] = tensors[Q] * np.float32(1e9)
    source = write_checkpoint(tmp_path / "source", tensors)
    ArrowQuantV2(DiffusionQuantConfig(**R2Q)).quantize_diffusion_model(source, tmp_path / "model")
    with open_quantized(tmp_path / "model", "full") as model:
        assert model[Q].bits_per_weight == 2 + 96 / 64
        assert np.isfinite(model.dequantize(Q)).all()
    assert ArrowQuantV2().validate_quality(source, tmp_path / "model").passed


def test_a_layer_that_policy_raises_uses_uls_and_says_why(models):
    rows = ArrowQuantV2(DiffusionQuantConfig(**R2Q)).plan(models.dit).rows
    raised = [r for r in rows if r.bit_width in (4, 8)]
    assert {r.bit_width for r in raised} == {4, 8}
    assert {r.method for r in raised} == {"uls"}
    assert all(r.reason.endswith(ONLY_TWO_BITS.format(r.bit_width)) for r in raised)
    assert not any("r2q exists" in r.reason for r in rows if r not in raised)
    shown = result_tables.plan_text(ArrowQuantV2(DiffusionQuantConfig(**R2Q)).plan(models.dit))
    assert "INT2 r2q" in shown
    assert "INT8 uls" in shown


def test_a_layer_that_falls_back_uses_uls_and_says_so(models, tmp_path):
    config = DiffusionQuantConfig(**{**R2Q, "min_accuracy": 0.98})
    result = ArrowQuantV2(config).quantize_diffusion_model(models.dit, tmp_path / "model")
    report = next(r for r in result.layers if r.name == Q)
    assert [(a.bit_width, a.method, a.grid) for a in report.attempts] == [(2, "r2q", "levels"), (4, "uls", "minimum")]
    assert (report.bit_width, report.method, report.grid) == (4, "uls", "minimum")
    first, second = (a.sentence for a in report.attempts)
    assert "r2q" not in first
    assert second.endswith(f"{ONLY_TWO_BITS.format(4)}.")
    events = [json.loads(line) for line in (tmp_path / "model" / "events.jsonl").read_text().splitlines()]
    methods = [e["method"] for e in events if e["event"] == "attempt_finished" and e["name"] == Q]
    assert methods == ["r2q", "uls"]
    with open_quantized(tmp_path / "model", "full") as model:
        assert (model[Q].bit_width, model[Q].method) == (4, "uls")


def test_one_array_takes_the_same_way_down():
    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    steps = DiffusionOrchestrator(DiffusionQuantConfig(**{**R2Q, "min_accuracy": 0.98}))
    tensor, attempts = steps.fallback_quantization(weight)
    assert (tensor.bit_width, tensor.method) == (4, "uls")
    assert [a.method for a in attempts] == ["r2q", "uls"]
    assert attempts[-1].sentence.endswith(f"{ONLY_TWO_BITS.format(4)}.")


def test_text_at_two_bits_compares_sign_planes_with_the_affine_grid(models):
    plan = ArrowQuantV2(DiffusionQuantConfig(bit_width=2, modality="text")).plan(models.mixed)
    assert plan.strategy.used_method == "r2q"
    assert {r.method for r in plan.rows if r.bit_width == 2} == {"uls|r2q"}


@pytest.mark.parametrize("bit_width", [4, 8])
def test_r2q_at_another_width_is_refused_before_anything_is_read(models, tmp_path, bit_width):
    config = DiffusionQuantConfig(bit_width=bit_width, method="r2q")
    for run in (
        lambda: ArrowQuantV2(config).plan(models.dit),
        lambda: ArrowQuantV2(config).quantize_diffusion_model(models.dit, tmp_path / "model"),
    ):
        with pytest.raises(ConfigurationError, match=r"r2q exists at 2 bits only, .* set bit_width=2"):
            run()
    assert not (tmp_path / "model").exists()


def test_a_manifest_with_levels_at_another_width_is_damaged(models, tmp_path):
    from arrowquant_nb.storage.lazy_tensor import LazyTensor

    with open_quantized(models.quantized("dit", **R2Q)) as model:
        entry = dict(model[Q]._entry)
        for change in ({"bit_width": 4}, {"grid": "minimum"}, {"group_size": 32}):
            with pytest.raises(ValidationError, match="damaged"):
                LazyTensor(model, Q, entry | change)
