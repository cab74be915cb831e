"""Capture of torch models against their own layers, against a plain hook, and against the NumPy capture."""

import inspect

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

import tiny_torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import arrowquant_nb as aq  # noqa: E402
from arrowquant_nb import ConfigurationError, DiffusionQuantConfig, MetadataError, OutputError, samples  # noqa: E402
from arrowquant_nb.calibration.call_time import CallTime  # noqa: E402
from arrowquant_nb.calibration.capture import capture  # noqa: E402
from arrowquant_nb.calibration.capture_file import read_calibration  # noqa: E402
from arrowquant_nb.calibration.scratch import SLAB_NBYTES, Scratch  # noqa: E402
from arrowquant_nb.calibration.statistics import CalibrationSettings, model_hash  # noqa: E402
from arrowquant_nb.calibration.torch_layers import torch_layers, torch_model_hash  # noqa: E402
from arrowquant_nb.samples import vocabulary  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
TIMES = (900, 500, 100)


def calls_of(call, n=2, times=TIMES, seed=1):
    torch.manual_seed(seed)
    return [call(t) for _ in range(n) for t in times]


@pytest.mark.parametrize("name", tiny_torch.MODELS)
def test_rows_times_the_checkpoint_weight_are_what_the_layer_gives(name):
    model, call = tiny_torch.seeded(name)
    stored = dict(model.state_dict())
    layers = torch_layers(model)
    used = set()

    def check(layer, args, output):
        used.add(layer.name)
        weight = stored[layer.name].numpy()
        product = layer.rows(args[0]) @ weight.reshape(len(weight), -1).T
        bias = 0 if layer.module.bias is None else layer.module.bias.detach().numpy()
        if output.dim() > 3 or hasattr(layer.module, "kernel_size"):
            output = output.movedim(1, -1) if hasattr(layer.module, "kernel_size") else output
        np.testing.assert_allclose(product + bias, output.reshape(-1, len(weight)).numpy(), rtol=2e-3, atol=2e-4)

    for layer in (one for several in layers.values() for one in several):
        layer.module.register_forward_hook(lambda _, args, output, layer=layer: check(layer, args, output))
    with torch.no_grad():
        model(**call(500))
    assert used == set(layers)


@pytest.mark.parametrize("name", tiny_torch.MODELS)
def test_every_layer_that_will_be_quantized_is_captured_at_every_timestep(name, tmp_path):
    model, call = tiny_torch.seeded(name)
    found = aq.calibrate(model, calls_of(call), 3, output=tmp_path / "c.parquet", mask_token_id=tiny_torch.MASK)
    assert found.unobserved == ()
    assert set(found) <= set(model.state_dict())
    times = next(iter(found.values())).times
    assert times.tolist() == ([917, 500, 83] if name == "BERT" else list(TIMES))
    tensors = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    for weight, layer in found.items():
        assert layer.columns == np.prod(tensors[weight][1:])


def test_a_grouped_convolution_gives_its_groups_one_after_the_other():
    conv = torch.nn.Conv1d(8, 4, 3, groups=2, dilation=2, padding="same", padding_mode="circular")
    x = torch.randn(2, 8, 9)
    (layer,) = torch_layers(torch.nn.Sequential(conv))["0.weight"]
    rows = layer.rows(x).reshape(2, 9, 2, 12)
    weight = conv.weight.detach().numpy().reshape(2, 2, 12)
    y = np.einsum("bpgc,goc->bgop", rows, weight).reshape(2, 4, 9) + conv.bias.detach().numpy()[:, None]
    np.testing.assert_allclose(y, conv(x).detach().numpy(), atol=1e-5)


class Grouped(torch.nn.Module):
    """A convolution in two groups before a linear layer; or, split, the same as two convolutions."""

    def __init__(self, split=False):
        super().__init__()
        torch.manual_seed(5)
        whole = torch.nn.Conv2d(32, 64, 3, padding=1, groups=2)
        halves = [torch.nn.Conv2d(16, 32, 3, padding=1) for _ in range(2)]
        for k, half in enumerate(halves):
            half.load_state_dict({name: value[32 * k :][:32] for name, value in whole.state_dict().items()})
        self.conv = torch.nn.ModuleList(halves) if split else whole
        self.linear = torch.nn.Linear(64, 512)

    def forward(self, x, timestep):
        del timestep
        if isinstance(self.conv, torch.nn.ModuleList):
            y = torch.cat([conv(part) for conv, part in zip(self.conv, x.chunk(2, 1), strict=True)], 1)
        else:
            y = self.conv(x)
        return self.linear(y.mean((-1, -2)))


def grouped_calls():
    torch.manual_seed(6)
    gain = torch.linspace(0.2, 3, 32)[:, None, None]
    return [{"x": gain * torch.randn(2, 32, 4, 4), "timestep": torch.tensor(t)} for t in TIMES for _ in range(2)]


def test_a_convolution_in_groups_is_calibrated_and_quantized_as_so_many_convolutions(tmp_path):
    layers = {False: ["conv.weight", "linear.weight"], True: ["conv.0.weight", "conv.1.weight", "linear.weight"]}
    gates = {"min_accuracy": 0.0, "min_output_sqnr_db": 0.0}
    config = DiffusionQuantConfig(
        layer_bit_widths={"*": 4}, method="gptq", group_size=64, enable_spatial=False, **gates
    )
    found, models = {}, {}
    for split, names in layers.items():
        folder, file = tmp_path / f"float-{split}", tmp_path / f"{split}.parquet"
        folder.mkdir()
        net = Grouped(split)
        save_file(net.state_dict(), folder / "diffusion_pytorch_model.safetensors")
        (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        found[split] = aq.calibrate(net, grouped_calls(), 3, output=file, layers=names)
        result = aq.ArrowQuantV2(config).quantize_diffusion_model(folder, tmp_path / f"out-{split}", calibration=file)
        assert not result.warnings
        models[split] = aq.open_quantized(tmp_path / f"out-{split}")
    assert list(found[False]) == ["conv.weight[0]", "conv.weight[1]", "linear.weight"]
    assert found[False].unobserved == ()
    for k in range(2):
        for array in ("hessian", "held_out", "channel_max", "times"):
            one, other = (
                getattr(f[n], array)
                for f, n in zip(found.values(), (f"conv.weight[{k}]", f"conv.{k}.weight"), strict=True)
            )
            assert np.array_equal(one, other)
    whole, halves = models[False]["conv.weight"], [models[True][f"conv.{k}.weight"] for k in range(2)]
    assert whole.method == "gptq-uls"
    assert np.array_equal(whole.dequantize(), np.concatenate([half.dequantize() for half in halves]))


def test_convolutions_in_very_many_groups_are_named_and_left_to_data_free_methods(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.depthwise = torch.nn.Conv2d(160, 160, 17, padding=8, groups=160)
            self.linear = torch.nn.Linear(160, 512)

        def forward(self, x, timestep):
            del timestep
            return self.linear(self.depthwise(x).mean((-1, -2)))

    net = Net()
    calls = [{"x": torch.randn(2, 160, 2, 2), "timestep": torch.tensor(t)} for t in TIMES for _ in range(2)]
    config = DiffusionQuantConfig(layer_bit_widths={"*": 4}, bit_width=4)
    found = aq.calibrate(net, calls, 3, output=tmp_path / "c.parquet", config=config)
    assert (list(found), found.unobserved) == (["linear.weight"], ("depthwise.weight",))
    with pytest.raises(ConfigurationError, match=r"'depthwise\.weight' is a convolution in 160 groups"):
        aq.calibrate(net, calls, 3, output=tmp_path / "c.parquet", layers=["depthwise.weight"])


def seen_by(model, name, calls):
    """Float64 rows of one linear layer in every call."""
    rows = []
    handle = model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
        lambda _, args: rows.append(args[0].detach().double().reshape(-1, args[0].shape[-1]).numpy())
    )
    with torch.no_grad():
        for call in calls:
            model(**call)
    handle.remove()
    return rows


def test_hessian_ranges_and_held_out_rows_are_those_of_the_calls(tmp_path):
    model, call = tiny_torch.seeded("DiT")
    runs = [calls_of(call, 1, seed=seed) for seed in range(3)]
    name = "transformer_blocks.0.attn1.to_k.weight"

    def loop(number):
        for one in runs[number]:
            model(**one)

    found = aq.calibrate(model, loop, output=tmp_path / "c.parquet", n_samples=2)
    layer = found[name]
    fit = [seen_by(model, name, run) for run in runs[:2]]
    per_step = [[r[t] for r in fit] for t in range(3)]
    hessian = np.mean([np.mean([x.T @ x / len(x) for x in step], 0) for step in per_step], 0)
    np.testing.assert_allclose(layer.hessian, hessian, rtol=1e-9, atol=1e-12)
    for i, step in enumerate(per_step):
        joined = np.concatenate(step)
        np.testing.assert_allclose(layer.channel_max[i], joined.max(0), rtol=1e-6)
        np.testing.assert_allclose(layer.channel_min[i], joined.min(0), rtol=1e-6)
        assert layer.second_moment[i] == pytest.approx(np.mean(joined**2))
        assert layer.histogram[i].sum() == joined.size
    held_out = seen_by(model, name, runs[2])
    for i, rows in enumerate(held_out):
        assert {r.tobytes() for r in layer.held_out[i]} <= {r.tobytes() for r in rows.astype(np.float32)}
    assert layer.input_name == "transformer_blocks.0.attn1.to_q.weight"
    assert read_calibration(tmp_path / "c.parquet").data_hash == found.data_hash


def numpy_seeds(settings):
    return [int(np.random.SeedSequence([settings.seed, which, 0]).generate_state(1)[0]) for which in (0, 1)]


@pytest.mark.parametrize("name", ["digits-dit", "docs-mlm"])
def test_a_trained_sample_through_its_own_class_gives_the_capture_of_numpy(name, tmp_path):
    """Same trajectories, so the same statistics; what is left is float32 rounding in two forward passes."""
    ours = samples.runnable(name)
    layers = [n for n in ours.layers() if "0.attn" in n or "0.attention" in n or n.startswith(("proj_out_2", "cls."))]
    settings = CalibrationSettings(n_samples=4, rows_per_step=8, held_out_rows_per_step=8)
    expected = capture(ours, settings, layers)
    if name == "digits-dit":
        theirs = diffusers.DiTTransformer2DModel.from_pretrained(samples.load(name), torch_dtype=torch.float32)
    else:
        theirs = transformers.BertForMaskedLM.from_pretrained(samples.load(name), dtype=torch.float32)
    seeds = numpy_seeds(settings)

    def loop(number):
        n = [settings.n_samples, settings.n_held_out][number]
        split = {} if name == "digits-dit" else {"split": ["calibration", "evaluation"][number]}
        for step in ours.trajectories(n, seeds[number], **split):
            inputs = {k: torch.from_numpy(np.array(v)) for k, v in step.inputs.items()}
            if name == "digits-dit":
                inputs["timestep"] = torch.full((len(inputs["hidden_states"]),), step.time)
            theirs(**inputs)

    found = aq.calibrate(
        theirs,
        loop,
        output=tmp_path / "c.parquet",
        n_samples=1,
        layers=layers,
        rows_per_step=8,
        mask_token_id=vocabulary.MASK,
    )
    assert found.model_hash == model_hash(ours.weights) == torch_model_hash(theirs)
    assert set(found) == set(layers)
    for weight in layers:
        a, b = found[weight], expected[weight]
        assert a.input_name == b.input_name
        assert np.abs(a.times - b.times).max() <= (0 if name == "digits-dit" else 8)  # 1 of 128 tokens
        for field in ("hessian", "channel_min", "channel_max", "second_moment", "rows", "held_out"):
            x, y = getattr(a, field), getattr(b, field)
            if name == "docs-mlm" and field in ("rows", "held_out"):
                continue  # times are counted from masks there, and rows are drawn by time
            assert np.abs(x - y).max() <= 1e-4 * np.abs(y).max(), (weight, field)


def test_a_pipeline_is_followed_along_its_own_timesteps_with_both_branches(tmp_path):
    pipeline = tiny_torch.dit_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    steps = []
    found = aq.calibrate(
        pipeline, [3, 1, 4, 1, 5], 4,
        output=tmp_path / "c.parquet", progress=steps.append, options={"guidance_scale": 4.0},
    )  # fmt: skip
    pipeline.scheduler.set_timesteps(4)
    layer = found["transformer_blocks.0.attn1.to_q.weight"]
    assert layer.times.tolist() == pipeline.scheduler.timesteps.tolist()
    assert layer.n_rows == 4 * 4 * 2 * 4  # trajectories, steps, branches, tokens
    assert (found.settings.n_samples, found.settings.n_held_out) == (4, 1)
    assert steps == [0.2, 0.4, 0.6, 0.8, 1.0]
    with pytest.raises(ConfigurationError, match="takes no prompts; it takes class_labels, "):
        aq.calibrate(pipeline, [{"prompts": "a"}], 2, output=tmp_path / "d.parquet")
    with pytest.raises(ConfigurationError, match="takes no prompt such as 'a fox'; give dicts"):
        aq.calibrate(pipeline, ["a fox"], 2, output=tmp_path / "d.parquet")


def test_a_pipeline_with_convolutions_takes_dicts_of_its_arguments(tmp_path):
    pipeline = tiny_torch.sd_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    inputs = [{"prompt_embeds": torch.randn(1, 5, 32), "negative_prompt_embeds": torch.randn(1, 5, 32)}]
    found = aq.calibrate(pipeline, inputs, 2, output=tmp_path / "c.parquet", n_samples=2)
    convolution = found["down_blocks.1.resnets.0.conv1.weight"]
    assert convolution.columns == 32 * 9
    assert found.settings.n_samples == 2
    assert not {r.tobytes() for r in convolution.rows[0]} & {r.tobytes() for r in convolution.held_out[0]}
    with pytest.raises(ConfigurationError, match=r"StableDiffusionPipeline draws what its prompt says.*--prompts FILE"):
        aq.calibrate(pipeline, None, 2, output=tmp_path / "d.parquet")
    with pytest.raises(ConfigurationError, match="has no component transformer; name one of"):
        aq.calibrate(pipeline, inputs, 2, output=tmp_path / "d.parquet", component="transformer")


def test_a_language_model_is_masked_ever_less(tmp_path):
    model, _ = tiny_torch.seeded("BERT")
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, 120, (4, 24)))
    found = aq.calibrate(model, ids, 5, output=tmp_path / "c.parquet", mask_token_id=tiny_torch.MASK)
    layer = found["bert.encoder.layer.0.intermediate.dense.weight"]
    assert layer.times.tolist() == [917, 708, 500, 292, 83]  # 22, 17, 12, 7, 2 of 24 masked
    assert layer.n_rows == 5 * 3 * 24
    with pytest.raises(ConfigurationError, match="give mask_token_id"):
        aq.calibrate(model, ids, 5, output=tmp_path / "d.parquet")
    ids[:, 3] = torch.tensor([5, 7, 5, 5])
    with pytest.raises(ConfigurationError, match=r"text [01] holds the mask token 7"):
        aq.calibrate(model, ids, 5, output=tmp_path / "d.parquet", mask_token_id=7)
    with pytest.raises(ConfigurationError, match="texts need the model's tokenizer"):
        aq.calibrate(model, ["masked"], 5, output=tmp_path / "d.parquet", mask_token_id=tiny_torch.MASK)


def test_statistics_beyond_the_memory_limit_lie_on_disk_and_are_the_same(tmp_path):
    model, call = tiny_torch.seeded("BERT")
    hashes = set()
    for limit in (0, 0.1, 2048):
        found = aq.calibrate(
            model, calls_of(call, 3), 3, output=tmp_path / "c.parquet", mask_token_id=tiny_torch.MASK, memory_mb=limit
        )
        hashes.add(found.data_hash)
    assert len(hashes) == 1


def test_scratch_hands_out_zeros_on_disk_and_says_when_there_is_no_room():
    scratch = Scratch(100)
    arrays = [scratch.zeros((5,), np.float64), scratch.zeros((3, 7), np.float32), scratch.zeros((2,), np.int64)]
    arrays.append(scratch.zeros((SLAB_NBYTES // 8,), np.float64))
    assert scratch.disk_nbytes == 84 + SLAB_NBYTES
    for value, array in enumerate(arrays):
        assert not array.any()
        array[...] = value
    assert [float(array.max()) for array in arrays] == [0, 1, 2, 3]
    with pytest.raises(OutputError, match="set TMPDIR"):
        scratch.zeros((1 << 44,), np.float64)


def test_one_layer_may_be_named_alone_and_memory_may_be_without_limit(tmp_path):
    model, call = tiny_torch.seeded("DiT")
    name = "transformer_blocks.0.attn1.to_q.weight"
    found = aq.calibrate(model, calls_of(call), 3, output=tmp_path / "c.parquet", layers=name, memory_mb=float("inf"))
    assert list(found) == [name]


def test_the_model_is_left_as_it_was_also_after_an_error(tmp_path):
    model, call = tiny_torch.seeded("DiT")
    model.train()
    before = model(**call(5)).sample.shape
    with pytest.raises(ZeroDivisionError):
        aq.calibrate(model, lambda _: model(**call(5)) and 1 / 0, output=tmp_path / "c.parquet")
    assert "forward" not in vars(model)
    assert all(module.training for module in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model(**call(5)).sample.shape == before
    assert not list(tmp_path.iterdir())


def test_a_run_uses_the_file_and_compensates(tmp_path):
    pipeline = tiny_torch.dit_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "model")
    aq.calibrate(pipeline, [1, 2, 3], 3, output=tmp_path / "c.parquet")
    result = aq.ArrowQuantV2(DiffusionQuantConfig(bit_width=4)).quantize_diffusion_model(
        tmp_path / "model", tmp_path / "out", calibration=tmp_path / "c.parquet"
    )
    quantized = [row for row in result.layers if row.bit_width < 16]
    assert quantized
    assert all(row.method.startswith("gptq") for row in quantized)


def test_call_time_reads_what_pipelines_pass():
    class Timed(torch.nn.Module):
        def forward(self, hidden_states, encoder_hidden_states=None, timestep=None):
            return hidden_states

    x = torch.zeros(3, 4)

    def read(*args, cls="UNet", **kwargs):
        options = {k: kwargs.pop(k) for k in ("time_range", "n_timesteps") if k in kwargs}
        times, n_samples = CallTime(Timed().forward, cls, **options).read(args, kwargs)
        return times.tolist(), n_samples

    assert read(x, None, torch.tensor(960)) == ([960], 3)
    assert read(x, timestep=999) == ([999], 3)
    assert read(hidden_states=x, timestep=torch.tensor([5, 5, 5])) == ([5], 3)
    assert read(x, timestep=torch.tensor([5, 6, 7])) == ([5, 6, 7], 3)
    assert read(x, timestep=torch.tensor(1.0), cls="FluxTransformer2DModel") == ([999], 3)
    assert read(x, timestep=torch.tensor(0.25, dtype=torch.bfloat16)) == ([250], 3)
    assert read(x, timestep=torch.tensor(1)) == ([1], 3)
    assert read(x, timestep=torch.tensor(250.0)) == ([250], 3)
    assert read(x, timestep=-1.0, time_range=(-3.0, 1.0)) == ([500], 3)
    assert read(x, timestep=torch.tensor(50), n_timesteps=100) == ([50], 3)
    assert read([x, x], timestep=torch.tensor([[0.0, 0.5], [0.25, 0.5]])) == ([500], 2)
    with pytest.raises(MetadataError, match="without its 'timestep'"):
        read(x)
    with pytest.raises(MetadataError, match=r"timestep \[1001.0\].*give time_range"):
        read(x, timestep=1001)
    with pytest.raises(ConfigurationError, match="the time 'abc' is not a real number"):
        read(x, timestep="abc")
    for ends in ("ab", (0, 0), 5):
        with pytest.raises(ConfigurationError, match=r"time_range .* is not two different finite numbers"):
            read(x, timestep=5, time_range=ends)


def test_refusals_name_what_to_change(tmp_path):
    model, call = tiny_torch.seeded("DiT")
    out = tmp_path / "c.parquet"
    for match, arguments in {
        "must end in .parquet": {"inputs": calls_of(call), "output": tmp_path / "c.bin"},
        "names no layer of the model": {"inputs": calls_of(call), "layers": ["nowhere.weight"]},
        "give dicts of the arguments": {"inputs": [1, 2]},
        "the list of inputs is empty": {"inputs": []},
        "no layer of DiTTransformer2DModel would be quantized": {
            "inputs": calls_of(call), "config": DiffusionQuantConfig(layer_bit_widths={"*": 16}),
        },
        "config must be a DiffusionQuantConfig, not dict": {"inputs": calls_of(call), "config": {"bit_width": 4}},
        "'nowhere.weight' names no layer": {"inputs": calls_of(call), "layers": "nowhere.weight"},
        "memory_mb is nan": {"inputs": calls_of(call), "memory_mb": float("nan")},
        "memory_mb is -1": {"inputs": calls_of(call), "memory_mb": -1},
        "n_samples is 0": {"inputs": calls_of(call), "n_samples": 0},
        "n_timesteps is 0": {"inputs": calls_of(call), "n_timesteps": 0},
    }.items():  # fmt: skip
        with pytest.raises(ConfigurationError, match=match):
            aq.calibrate(model, **{"output": out, **arguments})
    with pytest.raises(ConfigurationError, match="neither a diffusers pipeline nor a torch module"):
        aq.calibrate("digits-dit", output=out)
    for match, inputs in {
        "holds one record": calls_of(call, 1, (5,)),
        "call 0 does not fit the model's forward": [{"nothing": 1}, {"nothing": 1}],
        "was called without its 'timestep'": [{"hidden_states": torch.zeros(1, 4, 4, 4)}] * 2,
        "call 0 has 2 timesteps": [{**call(1), "timestep": torch.tensor([1, 2])}] * 2,
        "was never called": lambda _: None,
        "do not visit the same timesteps": lambda number: model(**call(number)),
        "its input holds NaN": [{**call(1), "hidden_states": torch.full((2, 4, 4, 4), torch.nan)}] * 2,
        "was called with a batch of no samples": [{**call(1), "timestep": torch.zeros(0)}] * 2,
    }.items():
        with pytest.raises(MetadataError, match=match):
            aq.calibrate(model, inputs, output=out)
    assert not list(tmp_path.iterdir())


def test_samples_of_a_batch_at_different_timesteps_are_told_apart(tmp_path):
    model, call = tiny_torch.seeded("DiT")

    def loop(number):
        torch.manual_seed(number)
        model(**{**call(1), "timestep": torch.tensor([900, 100])})

    found = aq.calibrate(model, loop, output=tmp_path / "c.parquet")
    layer = found["transformer_blocks.0.attn1.to_q.weight"]
    assert layer.times.tolist() == [900, 100]
    assert layer.n_rows == 4 * 2 * 4


def test_a_layer_that_stops_sharing_an_input_says_how_to_go_on(tmp_path):
    class Forked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(128, 128), torch.nn.Linear(128, 128)

        def forward(self, x, timestep):
            return self.a(x) + self.b(x if timestep > 500 else 2 * x)

    model = Forked()

    def loop(number):
        for t in (900, 100):
            model(torch.randn(2, 128), t)

    with pytest.raises(MetadataError, match=r"'b.weight' had the input of 'a.weight' at first.*share_inputs=False"):
        aq.calibrate(model, loop, output=tmp_path / "c.parquet")
    found = aq.calibrate(model, loop, output=tmp_path / "c.parquet", share_inputs=False)
    assert len(found.inputs) == 2


def test_a_layer_that_is_not_always_used_is_named_and_left_out(tmp_path):
    class Sometimes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Linear(128, 128) for _ in "abc")

        def forward(self, x, timestep):
            return self.a(x) if timestep > 500 else self.a(self.b(x))

    model = Sometimes()
    found = aq.calibrate(
        model, lambda n: [model(torch.randn(2, 128), t) for t in (900, 100)], output=tmp_path / "c.parquet"
    )
    assert found.unobserved == ("b.weight", "c.weight")
    assert read_calibration(tmp_path / "c.parquet").unobserved == found.unobserved
    assert list(found) == ["a.weight"]


class Experts(torch.nn.Module):
    """Each token goes to the expert of its sign; both are called, with no rows where there are none."""

    def __init__(self):
        super().__init__()
        self.experts = torch.nn.ModuleList([torch.nn.Linear(128, 128) for _ in range(2)])

    def forward(self, x, timestep):
        y = torch.zeros_like(x)
        for expert, chosen in zip(self.experts, (x[:, 0] > 0, x[:, 0] <= 0), strict=True):
            y[chosen] = expert(x[chosen])
        return y


def test_an_expert_without_tokens_in_a_call_is_not_used_in_it(tmp_path):
    names = ["experts.0.weight", "experts.1.weight"]

    def calibrated(signs):
        calls = [
            {"x": torch.ones(4, 128) * sign, "timestep": torch.full((4,), t)} for t in (900, 100) for sign in signs
        ]
        return aq.calibrate(Experts(), calls, 2, output=tmp_path / "c.parquet", layers=names)

    always = calibrated([torch.tensor([[1.0], [-1], [1], [1]])] * 4)
    assert (list(always), always.unobserved) == (names, ())
    never = calibrated([1.0] * 4)
    assert (list(never), never.unobserved) == (names[:1], (names[1],))


def test_the_signature_is_the_documented_one():
    assert list(inspect.signature(aq.calibrate).parameters)[:3] == ["model", "inputs", "steps"]
