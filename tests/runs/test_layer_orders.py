"""What the user orders of single layers while a run goes on: done next, and in the end the same as ordered at first."""

import pytest
from conftest import tree

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig
from arrowquant_nb.diffusion_orchestrator import DiffusionOrchestrator
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.events import LayerFinished, LayersOrdered
from arrowquant_nb.results import PlanRow
from arrowquant_nb.runs import layer_pass

FIRST, LAST = "transformer_blocks.0.attn1.to_k.weight", "transformer_blocks.1.norm1.linear.weight"


@pytest.fixture
def layer_by_layer(monkeypatch):
    """Small layers are not gathered, so that a run asks after every one."""
    monkeypatch.setattr(layer_pass, "batches", lambda tasks: [[task] for task in tasks])


def run(model, output, config, orders):
    """Return the events of a run that hears of `orders`, name of the layer that is done -> settings from then on."""
    events = []

    def newer():
        done = [e.name for e in events if isinstance(e, LayerFinished)]
        return orders.pop(done[-1], None) if done else None

    orchestrator = DiffusionOrchestrator(config)
    result = orchestrator.quantize_model(model, output, on_event=events.append, newer_settings=newer)
    return events, result


def test_an_order_in_mid_run_is_done_next_and_ends_as_if_it_had_stood_from_the_first(models, tmp_path, layer_by_layer):
    config = DiffusionQuantConfig(method="mse")
    wanted = {"layer_bit_widths": {FIRST: 8}, "layer_methods": {LAST: "hqq"}}
    ordered = config.replace(**wanted)
    events, result = run(models.dit, tmp_path / "out", config, {FIRST: ordered})
    finished = [e.name for e in events if isinstance(e, LayerFinished)]
    assert [finished.count(name) for name in (FIRST, LAST)] == [2, 1], "the last one was not done yet"
    assert finished[finished.index(FIRST) + 1] == FIRST
    said = next(e for e in events if isinstance(e, LayersOrdered))
    rows = [PlanRow.from_dict(row) for row in said.rows]
    assert [(r.name, r.bit_width, r.ordered_method) for r in rows] == [(FIRST, 8, ""), (LAST, 8, "hqq")], "INT8 by rule"
    assert DiffusionQuantConfig.from_dict(said.config) == ordered
    assert result.config == ordered.to_dict()
    assert tree(tmp_path / "out") == tree(models.quantized("dit", method="mse", **wanted))


def test_an_order_that_is_taken_back_leaves_no_trace(models, tmp_path, layer_by_layer):
    config = DiffusionQuantConfig(method="mse")
    orders = {FIRST: config.replace(layer_bit_widths={FIRST: 16}), LAST: config}
    run(models.dit, tmp_path / "out", config, orders)
    assert tree(tmp_path / "out") == tree(models.quantized("dit", method="mse"))


def test_nothing_but_orders_of_layers_is_taken(models, tmp_path, layer_by_layer):
    config = DiffusionQuantConfig(method="mse")
    events, result = run(models.dit, tmp_path / "out", config, {FIRST: config.replace(bit_width=8, seed=9)})
    assert not [e for e in events if isinstance(e, LayersOrdered)]
    assert result.config == config.to_dict()


def test_where_one_width_moves_others_nothing_is_asked(models, tmp_path, layer_by_layer):
    size = ArrowQuantV2().plan(models.dit).size_mb
    config = DiffusionQuantConfig(target_model_size_mb=0.9 * size)
    orders = {FIRST: config.replace(layer_bit_widths={FIRST: 8})}
    run(models.dit, tmp_path / "out", config, orders)
    assert orders, "still there"


def test_an_order_that_does_not_fit_stops_the_run_resumably(models, tmp_path, layer_by_layer):
    config = DiffusionQuantConfig(method="mse")
    with pytest.raises(ConfigurationError, match="r2q exists at 2 bits only"):
        run(models.dit, tmp_path / "out", config, {FIRST: config.replace(layer_methods={FIRST: "r2q"})})
    ArrowQuantV2(config).quantize_diffusion_model(models.dit, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(models.quantized("dit", method="mse"))


@pytest.mark.usefixtures("one_thread", "layer_by_layer")
def test_an_order_that_changes_what_is_folded_reaches_the_neighbours(tmp_path):
    """Values that are kept fold nothing: neither they nor query, key and modulation, some of which are done already."""
    block = "transformer_blocks.0"
    config = DiffusionQuantConfig(
        activation_bit_width=4, num_time_groups=1, calibration_samples=2,
        layer_bit_widths={"transformer_blocks.[123].*": 16},
    )  # fmt: skip
    ordered = config.replace(layer_bit_widths=config.layer_bit_widths | {f"{block}.attn1.to_v.weight": 16})
    first = f"{block}.attn1.to_q.weight"
    events, result = run("digits-dit", tmp_path / "out", config, {first: ordered})
    said = next(e for e in events if isinstance(e, LayersOrdered))
    names = {row["name"] for row in said.rows}
    assert {f"{block}.attn1.to_{p}.weight" for p in "qkv"} <= names
    assert f"{block}.norm1.linear.bias" in names
    finished = [e.name for e in events if isinstance(e, LayerFinished)]
    assert finished.count(first) == 2
    assert not next(r for r in result.layers if r.name == first).folding
    DiffusionOrchestrator(ordered).quantize_model("digits-dit", tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
