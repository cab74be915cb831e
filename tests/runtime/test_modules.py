"""A quantized layer computes what a float layer with the dequantized weight does, and moves like any torch module."""

import copy
import pickle
import warnings

import numpy as np
import pytest

from arrowquant_nb.errors import CheckpointError, ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers import quantize_array
from arrowquant_nb.quantizers.tensor import QuantizedTensor
from arrowquant_nb.quantizers.time_tables import LayerTimeTable, TimeGroupParams

torch = pytest.importorskip("torch")

from arrowquant_nb.api import quantize_tensor  # noqa: E402
from arrowquant_nb.runtime import (  # noqa: E402
    InputFormat,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedEmbedding,
    QuantizedLinear,
    time_context,
)
from arrowquant_nb.runtime.decoding import decode, rotate, unrotate  # noqa: E402

pytestmark = pytest.mark.torch

GRIDS = [
    (8, 64, "rtn", "float16"),
    (4, 32, "rtn", "float16"),
    (2, 64, "mse", "float16"),
    (8, 128, "uls", "float16"),
    (4, 64, "uls", "float16"),
    (2, 16, "uls", "float16"),
    (2, 32, "r2q", "float16"),
    (4, 32, "uls", "k"),
    (2, 16, "uls", "k"),
]
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dressed(tensor: QuantizedTensor, low_rank=0, equalization=None) -> QuantizedTensor:
    """The tensor with a low-rank branch and equalization around it."""
    rows, columns = tensor.rows, tensor.columns
    return QuantizedTensor(
        **{
            **vars(tensor),
            "low_rank_a": random(rows, low_rank, seed=7).astype(np.float16) if low_rank else None,
            "low_rank_b": random(low_rank, columns, seed=8).astype(np.float16) if low_rank else None,
            "equalization": equalization,
        }
    )


def everything(rows=48, columns=96):
    """A tensor that is rotated, has a branch, and is equalized."""
    rotated = quantize_tensor(random(rows, columns), 4, 32, rotation="hadamard", seed=5)
    return dressed(rotated, 3, (1 + np.arange(columns) % 5).astype(np.float16))


@pytest.mark.parametrize(("bits", "group", "method", "scale_format"), GRIDS)
@pytest.mark.parametrize("columns", [256, 200])
def test_a_linear_layer_equals_torch_with_the_dequantized_weight(bits, group, method, scale_format, columns):
    tensor = quantize_array(random(40, columns), bits, group, method, scale_format=scale_format)
    bias, x = torch.from_numpy(random(40, seed=2)), torch.from_numpy(random(3, 5, columns, seed=1))
    layer = QuantizedLinear.from_arrays(tensor, bias)
    weight = torch.from_numpy(tensor.dequantize())
    assert (layer.in_features, layer.out_features) == (columns, 40)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, weight, bias), **TOLERANCE)
    torch.testing.assert_close(decode(layer.form, layer.weight.arrays()), weight, rtol=0, atol=1e-6)
    assert torch.equal(layer.dequantize(), weight)


def test_rotation_branch_and_equalization_are_undone_in_the_product():
    tensor = everything()
    x = torch.from_numpy(random(7, 96, seed=1))
    layer = QuantizedLinear.from_arrays(tensor)
    torch.testing.assert_close(layer(x), x @ torch.from_numpy(tensor.dequantize()).t(), rtol=2e-4, atol=2e-4)


def test_rotating_in_torch_is_the_kernels_rotation_and_undoes_itself():
    from arrowquant_nb.quantizers.rotation import rotate as rotate_rows

    rows = random(6, 96)
    turned = rows.copy()
    rotate_rows(turned, 11)
    np.testing.assert_allclose(rotate(torch.from_numpy(rows), 11).numpy(), turned, atol=1e-5)
    np.testing.assert_allclose(unrotate(torch.from_numpy(turned), 11).numpy(), rows, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_outputs_have_the_dtype_of_the_inputs_and_float32_sums(dtype):
    tensor = quantize_array(random(64, 128), 4)
    x = torch.from_numpy(random(9, 128, seed=1)).to(dtype)
    layer = QuantizedLinear.from_arrays(tensor, torch.zeros(64)).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    expected = x.float() @ torch.from_numpy(tensor.dequantize()).t()
    torch.testing.assert_close(y, expected.to(dtype), **(TOLERANCE if dtype == torch.float32 else {}))


def test_the_gradient_of_the_inputs_passes_through():
    layer = QuantizedLinear.from_arrays(everything())
    x = torch.from_numpy(random(4, 96, seed=1)).requires_grad_()
    layer(x).square().sum().backward()
    weight = layer.dequantize()
    torch.testing.assert_close(x.grad, 2 * (x.detach() @ weight.t()) @ weight, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("rule", ["per_token", "per_group"])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_gradient_passes_through_rounding_as_if_there_were_none(kind, rule):
    if kind == "linear":
        layer, x = QuantizedLinear.from_arrays(everything(), None, InputFormat(rule, 8)), random(4, 96, seed=1)
    else:
        layer = QuantizedConv1d.from_arrays(quantize_array(random(48, 32, 3), 4), None, InputFormat(rule, 8))
        x = random(2, 32, 9, seed=1)
    given = torch.from_numpy(x).requires_grad_()
    y = layer(given)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), layer(torch.from_numpy(x)), rtol=0, atol=0.02)
    wanted = torch.from_numpy(x).requires_grad_()
    layer.inputs = InputFormat()
    layer(wanted).sum().backward()
    torch.testing.assert_close(given.grad, wanted.grad, rtol=1e-4, atol=1e-4)


def test_what_a_stored_grid_cuts_off_has_no_gradient():
    tensor = quantize_array(np.eye(32, dtype=np.float32), 8, 32)
    table = LayerTimeTable.of_groups("q.weight", (TimeGroupParams((0, 1000), 0.125, 0, 96),))  # 0 to 31.875
    layer = QuantizedLinear.from_arrays(tensor, None, InputFormat("static", 8, table))
    x = torch.tensor([[-1.0, 0.0, 0.3, 31.0, 32.0, *[1.0] * 27]], requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad[0, :5], torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]), rtol=0, atol=1e-3)


def test_a_bias_can_be_trained():
    layer = QuantizedLinear.from_arrays(everything(), torch.ones(48))
    layer.bias.requires_grad_()
    layer(torch.from_numpy(random(5, 96))).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((48,), 5.0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_inputs_that_are_no_floats_are_refused(dtype):
    for inputs in (InputFormat(), InputFormat("per_token", 8)):
        linear = QuantizedLinear.from_arrays(everything(), None, inputs, name="to_q")
        convolution = QuantizedConv1d.from_arrays(quantize_array(random(48, 32, 3), 4), None, inputs, name="to_q")
        for layer, x in ((linear, torch.ones(2, 96)), (convolution, torch.ones(2, 32, 9))):
            layer(x)
            with pytest.raises(ConfigurationError, match=r"to_q: inputs of dtype torch\..*x\.float\(\)"):
                layer(x.to(dtype))


def test_no_inputs_give_no_outputs():
    layer = QuantizedLinear.from_arrays(everything())
    assert layer(torch.zeros(0, 96)).shape == (0, 48)
    assert layer(torch.zeros(2, 0, 96)).shape == (2, 0, 48)


def test_casting_casts_the_bias_and_leaves_codes_and_scales():
    layer = QuantizedLinear.from_arrays(everything(), torch.ones(48))
    before = {name: buffer.clone() for name, buffer in layer.weight.arrays().items()}
    assert layer.to(torch.bfloat16) is layer
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert layer.weight.shape == (48, 96)
    assert layer.weight.device == torch.device("cpu")
    for name, buffer in layer.weight.arrays().items():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])
    assert layer.float().weight.dtype == torch.float32


def test_no_float_copy_of_the_weight_is_held():
    tensor = everything()
    layer = QuantizedLinear.from_arrays(tensor, torch.ones(48))
    layer(torch.ones(2, 96))
    assert sum(t.nbytes for t in layer.state_dict().values()) == tensor.nbytes + 4 * 48
    assert layer.weight.nbytes == tensor.nbytes
    assert set(layer.state_dict()) == {"bias", *(f"weight.{part}" for part in layer.form.parts())}


def test_whoever_takes_the_weight_for_a_tensor_is_told_what_it_is():
    layer = QuantizedLinear.from_arrays(everything())
    with pytest.raises(AttributeError, match=r"dequantize\(\)"):
        layer.weight.data  # noqa: B018
    with pytest.raises(TypeError):
        torch.nn.functional.linear(torch.ones(1, 96), layer.weight)


def test_copies_pickles_and_state_dicts_hold_the_layer():
    layer = QuantizedLinear.from_arrays(everything(), torch.ones(48))
    x = torch.from_numpy(random(4, 96, seed=1))
    y = layer(x)
    fresh = QuantizedLinear(layer.form, bias=True)
    fresh.load_state_dict(layer.state_dict())
    unfilled = QuantizedLinear.empty(layer.form)
    assert unfilled.weight.packed.is_meta
    unfilled.load_state_dict(layer.state_dict(), assign=True)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh, unfilled):
        assert torch.equal(other(x), y)


def test_codes_that_are_offloaded_come_for_each_call():
    """As `enable_sequential_cpu_offload(offload_buffers=True)` does it: a hook before the forward of every module."""
    accelerate = pytest.importorskip("accelerate")
    x = torch.from_numpy(random(4, 96, seed=1))
    for layer in (
        QuantizedLinear.from_arrays(everything(), torch.ones(48)),
        QuantizedLinear.from_arrays(everything(), torch.ones(48), InputFormat("per_token", 8)),
    ):
        y = layer(x)
        accelerate.cpu_offload(layer, torch.device("cpu"), offload_buffers=True)
        assert layer.weight.packed.is_meta
        assert torch.equal(layer(x), y)
        assert layer.weight.packed.is_meta
        assert layer.dequantize().device.type == "cpu"


def test_codes_without_values_are_refused():
    form = QuantizedLinear.from_arrays(everything()).form
    with pytest.raises(CheckpointError, match=r"to_q.*on the meta device"):
        QuantizedLinear.empty(form, name="to_q")(torch.ones(1, 96))


def test_a_traced_layer_computes_what_it_is_given():
    layer = QuantizedLinear.from_arrays(everything(), torch.ones(48), InputFormat("per_token", 8))
    x, other = (torch.from_numpy(random(4, 96, seed=seed)) for seed in (1, 2))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch says that sizes become constants, and that tracing grows old
        traced = torch.jit.trace(layer, x)
    torch.testing.assert_close(traced(other), layer(other), rtol=0, atol=0.02)


def test_tracing_k_scales_is_refused_with_the_ways_that_work():
    layer = QuantizedLinear.from_arrays(quantize_tensor(random(48, 256), 4, 32, "uls", scale_format="k"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that tracing grows old
        with pytest.raises(ConfigurationError, match=r"torch\.export"):
            torch.jit.trace(layer, torch.ones(2, 256))


@pytest.mark.parametrize("rule", ["float", "per_token"])
def test_a_compiled_layer_is_one_graph_around_the_kernels(rule):
    layer = QuantizedLinear.from_arrays(everything(), torch.ones(48), InputFormat(rule, 8))
    x, called = torch.from_numpy(random(4, 96, seed=1)), []

    def backend(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes if "arrowquant_nb" in str(node.target))
        return graph.forward

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
    product = "float_product" if rule == "float" else "code_product"
    assert [name.split(".")[1] for name in called] == ["rotated", product]


@pytest.mark.parametrize("rule", ["float", "per_token"])
def test_under_autocast_a_product_is_as_exact_as_without(rule):
    """Kernels multiply in float32 or in integers whatever torch would cast to; outputs have the dtype of inputs."""
    tensor, x = quantize_tensor(random(48, 96), 4, 32, rotation="hadamard", seed=5), torch.from_numpy(random(6, 96))
    layer = QuantizedLinear.from_arrays(tensor, torch.ones(48), InputFormat(rule, 8))
    for dtype in (torch.float32, torch.bfloat16):
        given = x.to(dtype)
        for _ in range(3):  # the third by the product that is kept ready
            y = layer(given)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(layer(given), y)
        assert y.dtype == dtype


def rotated_convolution():
    """A convolution whose weight is decoded for every call, and rotated back."""
    tensor = quantize_tensor(random(24, 288), 4, 32, rotation="hadamard", seed=5)
    tensor = QuantizedTensor(**{**vars(tensor), "shape": (24, 32, 3, 3)})
    return QuantizedConv2d.from_arrays(tensor, torch.ones(24), padding=1), torch.from_numpy(random(1, 32, 5, 5))


def test_a_weight_that_is_decoded_and_rotated_back_is_one_graph_too():
    layer, x = rotated_convolution()
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
    linear = QuantizedLinear.from_arrays(everything())
    x = torch.from_numpy(random(4, 96, seed=1)).requires_grad_()
    y = torch.compile(linear, backend="eager", fullgraph=True)(x)
    assert torch.equal(y, linear(x))
    assert y.requires_grad


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_layer_needs_none_of_our_operators(strict):
    convolution, images = rotated_convolution()
    linear, rows = QuantizedLinear.from_arrays(everything(), torch.ones(48)), torch.from_numpy(random(4, 96, seed=1))
    for layer, x in ((convolution, images), (linear, rows)):
        exported = torch.export.export(layer, (x,), strict=strict)
        assert not [node for node in exported.graph.nodes if "arrowquant_nb" in str(node.target)]
        torch.testing.assert_close(exported.module()(x), layer(x), rtol=1e-4, atol=1e-4)


def test_a_layer_notices_that_its_buffers_are_others():
    """What the kernels need is kept from call to call; nothing of it may outlive the buffers it was made of."""
    tensor, other = (quantize_array(random(40, 64, seed=seed), 4, 32, "rtn") for seed in (0, 1))
    layer, x = QuantizedLinear.from_arrays(tensor), torch.from_numpy(random(3, 64))
    doubled = 2 * layer(x)
    layer.weight.scales = 2 * layer.weight.scales
    torch.testing.assert_close(layer(x), doubled)
    layer.weight.scales.data = 2 * layer.weight.scales
    torch.testing.assert_close(layer(x), 2 * doubled)
    layer.weight.scales.mul_(0.25)
    layer.share_memory()
    torch.testing.assert_close(layer(x), doubled / 2)
    layer.load_state_dict(QuantizedLinear.from_arrays(other).state_dict(), assign=True)
    assert torch.equal(layer(x), QuantizedLinear.from_arrays(other)(x))


def test_the_meta_device_gives_shapes():
    layer = QuantizedLinear.empty(QuantizedLinear.from_arrays(everything()).form, bias=False)
    assert layer(torch.empty(3, 96, device="meta")).shape == (3, 48)
    assert layer.to_empty(device="cpu").weight.packed.device.type == "cpu"


@pytest.mark.parametrize(("bits", "group", "method", "scale_format"), GRIDS)
@pytest.mark.parametrize("rule", ["float", "per_token", "per_group", "static"])
def test_no_tensor_of_a_layer_stays_behind_on_the_processor(bits, group, method, scale_format, rule):
    """The way of other devices, as far as shapes: a tensor of another device would be refused."""
    tensor = quantize_array(random(40, 256), bits, group, method, scale_format=scale_format)
    groups = tuple(TimeGroupParams((first, first + 500), 0.5, 3, 256) for first in (0, 500))
    table = LayerTimeTable.of_groups("q", groups) if rule == "static" else None
    means = random(2, 256) if rule == "static" else None
    layer = QuantizedLinear.from_arrays(tensor, torch.ones(40), InputFormat(rule, 8, table), means).to("meta")
    with time_context([100, 900]):
        y = layer(torch.empty(2, 3, 256, device="meta", dtype=torch.float16))
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 40), torch.float16, "meta")
    assert layer.dequantize().device.type == "meta"


def test_bad_inputs_name_the_layer():
    layer = QuantizedLinear.from_arrays(everything(), name="blocks.0.to_q.weight")
    with pytest.raises(ShapeMismatchError, match=r"blocks\.0\.to_q\.weight.*96 columns"):
        layer(torch.ones(2, 95))
    with pytest.raises(ShapeMismatchError, match="bias of shape"):
        QuantizedLinear.from_arrays(everything(), torch.ones(47))
    arrays = {part: buffer.numpy() for part, buffer in layer.weight.arrays().items()}
    with pytest.raises(ShapeMismatchError, match=r"to_q\.weight\.packed' must be uint8"):
        layer.weight.set_arrays({**arrays, "packed": np.zeros((1, 1), np.uint8)}, layer.name)


@pytest.mark.parametrize("tensor", [everything(), quantize_array(random(48, 96), 2, 32, "r2q")], ids=["all", "r2q"])
def test_a_table_of_embeddings_decodes_the_rows_that_are_asked_for(tensor):
    table = QuantizedEmbedding.from_arrays(tensor, padding_idx=1)
    weight, ids = torch.from_numpy(tensor.dequantize()), torch.tensor([[3, 47, 3], [0, 1, 2]])
    assert torch.equal(table(ids), torch.nn.functional.embedding(ids, weight))
    assert table(ids[:, :0]).shape == (2, 0, 96)
    assert table.half()(ids).dtype == torch.float16
    assert table.weight.nbytes == tensor.nbytes
    values = QuantizedEmbedding.empty(table.form)(torch.empty(2, 3, dtype=torch.long, device="meta"))
    assert (values.shape, values.device.type) == ((2, 3, 96), "meta")
    for bad in (48, -1):
        with pytest.raises(ShapeMismatchError, match=rf"words.*{bad}.*table of 48"):
            QuantizedEmbedding.from_arrays(tensor, name="words")(torch.tensor([bad]))


CONVOLUTIONS = [
    (QuantizedConv1d, torch.nn.Conv1d, (12,), {"kernel_size": 3, "padding": 1, "stride": 2}),
    (QuantizedConv2d, torch.nn.Conv2d, (9, 8), {"kernel_size": 3, "padding": 1}),
    (QuantizedConv2d, torch.nn.Conv2d, (9, 8), {"kernel_size": (3, 2), "padding": "same", "dilation": 2}),
    (
        QuantizedConv2d,
        torch.nn.Conv2d,
        (9, 8),
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "stride": 2},
    ),
    (QuantizedConv2d, torch.nn.Conv2d, (5, 5), {"kernel_size": 1}),
    (QuantizedConv3d, torch.nn.Conv3d, (4, 5, 6), {"kernel_size": (1, 2, 2), "stride": (1, 2, 2)}),
]


def convolution(kind, plain, settings, inputs=None):
    reference = plain(32, 24, **settings)
    tensor = quantize_array(reference.weight.detach().numpy(), 8, 32)
    with torch.no_grad():
        reference.weight.copy_(torch.from_numpy(tensor.dequantize()))
    given = {k: getattr(reference, k) for k in ("stride", "padding", "dilation", "groups", "padding_mode")}
    return reference, kind.from_arrays(tensor, reference.bias.detach(), inputs, **given)


@pytest.mark.parametrize(("kind", "plain", "size", "settings"), CONVOLUTIONS)
def test_a_convolution_equals_torch_and_its_rows_equal_the_convolution(kind, plain, size, settings):
    torch.manual_seed(0)
    reference, layer = convolution(kind, plain, settings)
    x = torch.randn(2, 32, *size)
    with torch.no_grad():
        y = reference(x)
        torch.testing.assert_close(layer(x), y, **TOLERANCE)
        torch.testing.assert_close(layer(x[0]), y[0], **TOLERANCE)
        rounded = convolution(kind, plain, settings, InputFormat("per_token"))[1]
        rounded.load_state_dict(layer.state_dict())
        assert (rounded(x) - y).norm() < 0.02 * y.norm()


def test_convolutions_refuse_what_does_not_fit():
    _, layer = convolution(*CONVOLUTIONS[1][:2], CONVOLUTIONS[1][3])
    with pytest.raises(ShapeMismatchError, match="32 channels"):
        layer(torch.ones(1, 31, 4, 4))
    with pytest.raises(ShapeMismatchError, match="QuantizedConv1d"):
        QuantizedConv1d.empty(layer.form)


@pytest.mark.parametrize("rule", ["float", "per_token", "per_group"])
def test_a_convolution_in_groups_multiplies_each_with_its_own_rows(rule):
    torch.manual_seed(0)
    reference = torch.nn.Conv2d(64, 24, 3, padding=1, groups=4)
    matrix = reference.weight.detach().numpy().reshape(24, -1)
    tensor = dressed(quantize_tensor(matrix, 8, 32, rotation="hadamard", seed=5), 2, np.ones(144, np.float16))
    tensor = QuantizedTensor(**{**vars(tensor), "shape": (24, 16, 3, 3)})
    with torch.no_grad():
        reference.weight.copy_(torch.from_numpy(tensor.dequantize()))
    layer = QuantizedConv2d.from_arrays(tensor, reference.bias.detach(), InputFormat(rule), padding=(1, 1), groups=4)
    x = torch.randn(2, 64, 5, 6)
    with torch.no_grad():
        y = reference(x)
        assert (layer(x) - y).norm() <= (1e-5 if rule == "float" else 0.02) * y.norm()
    rows = layer.float_form()[0](64, 24, 3, groups=4)
    assert rows.weight.shape == layer.weight.shape
