"""On a GPU the weight is decoded for each call, and gives what the processor's kernels give. Skipped without one."""

import gc

import numpy as np
import pytest
from runtime.conftest import torch_model
from runtime.test_modules import GRIDS, everything, random

from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.quantizers import quantize_array
from arrowquant_nb.quantizers.time_tables import LayerTimeTable, TimeGroupParams

torch = pytest.importorskip("torch")

from arrowquant_nb.runtime import (  # noqa: E402
    InputFormat,
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLinear,
    time_context,
)
from arrowquant_nb.runtime.module_tree import quantized_layers  # noqa: E402
from arrowquant_nb.torch_models import load_quantized  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.fixture(autouse=True)
def full_float32():
    """Compare with sums of float32, not of TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def agree(layer, x, tolerance=1e-5):
    """The layer computes the same on both sides, and returns to the processor as it was."""
    with torch.no_grad():
        y = layer(x)
        there = layer.cuda()(x.cuda())
    assert there.device.type == "cuda"
    assert (there.cpu().float() - y.float()).norm() <= tolerance * y.float().norm()
    assert torch.equal(layer.cpu()(x), y)


@pytest.mark.parametrize(("bits", "group", "method", "scale_format"), GRIDS)
@pytest.mark.parametrize("rule", ["float", "per_token", "per_group", "static"])
def test_every_grid_and_rule_of_inputs_gives_what_the_processor_gives(bits, group, method, scale_format, rule):
    tensor = quantize_array(random(40, 200), bits, group, method, scale_format=scale_format)
    params = tuple(TimeGroupParams((first, first + 500), 0.03125, 120, 200) for first in (0, 500))
    table = LayerTimeTable.of_groups("q", params) if rule == "static" else None
    means = random(2, 200) * np.float32(0.1) if rule == "static" else None
    layer = QuantizedLinear.from_arrays(tensor, torch.ones(40), InputFormat(rule, 8, table), means)
    with time_context([100, 900]), torch.no_grad():
        agree(layer, torch.from_numpy(random(2, 3, 200, seed=1)), 1e-5 if rule == "float" else 2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotation_branch_and_equalization_are_undone_there_too(dtype):
    layer = QuantizedLinear.from_arrays(everything(), torch.ones(48)).to(dtype)
    agree(layer, torch.from_numpy(random(5, 96, seed=1)).to(dtype), 1e-4 if dtype == torch.float32 else 2e-2)


def test_convolutions_and_tables_of_embeddings():
    convolution = torch.nn.Conv2d(32, 24, 3, padding=1)
    tensor = quantize_array(convolution.weight.detach().numpy(), 4, 32)
    for inputs in (InputFormat(), InputFormat("per_token")):
        layer = QuantizedConv2d.from_arrays(tensor, convolution.bias.detach(), inputs, padding=(1, 1))
        agree(layer, torch.from_numpy(random(2, 32, 9, 8)), 1e-5 if inputs.is_float else 2e-3)
    table = QuantizedEmbedding.from_arrays(quantize_array(random(40, 64), 4, 32))
    ids = torch.tensor([[3, 39], [0, 1]])
    assert torch.equal(table.cuda()(ids.cuda()).cpu(), table.cpu()(ids))


@pytest.mark.parametrize("name", ["digits-dit", "docs-mlm"])
def test_a_loaded_sample_predicts_there_what_it_predicts_here(folders, name):
    folder = folders(name, bit_width=4)
    model = load_quantized(torch_model(folder), folder).eval()
    if name == "digits-dit":
        inputs = (torch.randn(2, 1, 8, 8), torch.tensor([500, 20]), torch.tensor([3, 10]))
    else:
        inputs = (torch.arange(24).reshape(2, 12),)
    with torch.no_grad():
        here = model(*inputs)[0]
        there = model.cuda()(*(x.cuda() for x in inputs))[0].cpu()
    assert (there - here).norm() <= 1e-4 * here.norm()


def test_a_model_loads_onto_the_gpu_it_is_on(folders):
    folder = folders("digits-dit", bit_width=4)
    model = load_quantized(torch_model(folder, "cuda"), folder)
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cuda"}


def test_only_codes_stay_in_the_memory_of_the_gpu():
    tensor = quantize_array(random(1024, 1024), 4)
    layer = QuantizedLinear.from_arrays(tensor)
    gc.collect()
    before = torch.cuda.memory_allocated()
    layer = layer.cuda()
    with torch.no_grad():
        layer(torch.ones(1, 1024, device="cuda"))
    assert torch.cuda.memory_allocated() - before <= 1.1 * tensor.nbytes + (32 << 20)  # a workspace of the library's


def test_gradients_of_inputs_pass_through_there():
    layer = QuantizedLinear.from_arrays(everything()).cuda()
    x = torch.from_numpy(random(4, 96, seed=1)).cuda().requires_grad_()
    layer(x).square().sum().backward()
    weight = layer.dequantize()
    torch.testing.assert_close(x.grad, 2 * (x.detach() @ weight.t()) @ weight, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("activation_bit_width", [None, 8])
def test_a_pipeline_is_calibrated_quantized_saved_and_loaded_there(tmp_path, activation_bit_width):
    diffusers = pytest.importorskip("diffusers")
    from arrowquant_nb.diffusers import PixelDiTPipeline, quantize_pipeline

    pipeline = PixelDiTPipeline.from_sample("digits-dit").to("cuda")
    classes = {"class_labels": [3, 5]}

    def draw(of):
        of.set_progress_bar_config(disable=True)
        return of(**classes, num_inference_steps=4, generator=torch.Generator().manual_seed(3)).images

    before = draw(pipeline)
    config = DiffusionQuantConfig(bit_width=8, activation_bit_width=activation_bit_width)
    report = quantize_pipeline(pipeline, config, [classes] * 4, 4, output=tmp_path / "master")
    assert {t.device.type for t in pipeline.transformer.state_dict().values()} == {"cuda"}
    assert report.sample_psnr_db > 30
    after = draw(pipeline)
    assert 0 < np.abs(after - before).max() < 0.3
    pipeline.save_pretrained(tmp_path / "saved")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved").to("cuda")
    np.testing.assert_allclose(draw(again), after, atol=1e-5)
    np.testing.assert_allclose(draw(again.to("cpu")), after, atol=1e-3 if activation_bit_width is None else 0.05)


def test_a_pipeline_that_offloads_layer_by_layer_leaves_no_codes_there(folders):
    pytest.importorskip("diffusers")
    from arrowquant_nb.diffusers import PixelDiTPipeline

    pipeline = PixelDiTPipeline.from_sample("digits-dit")
    load_quantized(pipeline.transformer, folders("digits-dit", bit_width=4))
    pipeline.set_progress_bar_config(disable=True)
    gc.collect()
    before = torch.cuda.memory_allocated()

    def draw():
        return pipeline([3, 5], num_inference_steps=2, generator=torch.Generator().manual_seed(3)).images

    here = draw()
    pipeline.enable_sequential_cpu_offload()
    assert torch.cuda.memory_allocated() - before <= 64 << 10  # tables of positions, which are not stored
    np.testing.assert_allclose(draw(), here, atol=1e-3)
    layers = quantized_layers(pipeline.transformer).values()
    assert all(part.is_meta for layer in layers for part in layer.weight.arrays().values())


@pytest.mark.filterwarnings("ignore")  # what torch says of its own compiling
@pytest.mark.parametrize("grid", GRIDS[3:7], ids=str)
def test_compiling_there_changes_rounding_at_most(grid):
    bits, group, method, scale_format = grid
    tensor = quantize_array(random(64, 256), bits, group, method, scale_format=scale_format)
    layer = QuantizedLinear.from_arrays(tensor, torch.ones(64)).cuda()
    x = torch.from_numpy(random(3, 256, seed=1)).cuda()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer)(x), layer(x), rtol=1e-4, atol=1e-4)
