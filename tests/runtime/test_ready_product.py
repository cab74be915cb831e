"""A linear layer's second call takes a way of its own; nothing but the time it takes may tell."""

import copy
import gc
import pickle
import warnings
import weakref
from unittest import mock

import numpy as np
import pytest

from arrowquant_nb import _kernels
from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers import quantize_array

torch = pytest.importorskip("torch")

from arrowquant_nb.runtime import InputFormat, QuantizedConv2d, QuantizedLinear  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        _kernels.active_isa() in ("numpy", "scalar"), reason="no product is kept ready without kernels for this machine"
    ),
]

ROWS, COLUMNS = 40, 96
FORMATS = [InputFormat(), InputFormat("per_token", 8), InputFormat("per_group", 4)]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).to(dtype)


def layer_of(inputs=None, bias=None, seed=0):
    tensor = quantize_array(random(ROWS, COLUMNS, seed=seed).numpy(), 4, 32, "uls")
    return QuantizedLinear.from_arrays(tensor, bias, inputs, dtype=None if bias is None else bias.dtype)


def long_way(layer, x):
    """What a layer gives that has not been called before."""
    layer = copy.deepcopy(layer)
    assert layer.weight.ready_product is None
    return layer(x)


def ready(*given, **named):
    layer = layer_of(*given, **named)
    layer(random(1, COLUMNS))
    assert layer.weight.ready_product is not None
    return layer


@pytest.mark.parametrize("inputs", FORMATS, ids=lambda f: f.rule)
@pytest.mark.parametrize("bias", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_it_gives_the_same_bytes(inputs, bias, dtype):
    layer = ready(inputs, None if bias is None else random(ROWS, seed=3, dtype=bias))
    for shape in ((COLUMNS,), (1, COLUMNS), (7, COLUMNS), (2, 3, COLUMNS), (2, 0, COLUMNS), (0, COLUMNS)):
        x = random(*shape, seed=1, dtype=dtype)
        y = layer(x)
        assert y.dtype == dtype
        assert y.shape == (*shape[:-1], ROWS)
        assert torch.equal(y, long_way(layer, x))


@pytest.mark.parametrize(
    "given",
    [
        random(COLUMNS, 5).t(),
        random(5, 2 * COLUMNS)[:, ::2],
        random(1, COLUMNS).expand(4, COLUMNS),
        torch.nn.Parameter(random(3, COLUMNS)),
        torch.nn.Parameter(random(3, COLUMNS), requires_grad=False),
    ],
    ids=["transposed", "every other column", "expanded", "with a gradient", "parameter"],
)
def test_inputs_that_cannot_be_read_as_they_lie(given):
    layer = ready()
    expected = long_way(layer, given.detach().contiguous())
    torch.testing.assert_close(layer(given), expected, rtol=1e-5, atol=5e-5, check_stride=False)
    assert layer(given).requires_grad == given.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e-45, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_at_the_limits(value, dtype):
    layer, x = ready(), random(3, COLUMNS, dtype=dtype)
    x[1, 5] = value
    torch.testing.assert_close(layer(x), long_way(layer, x), rtol=0, atol=0, equal_nan=True)


def test_wrong_columns_are_refused_by_the_name_of_the_layer():
    layer = ready()
    layer.name = "to_q"
    for x in (random(2, COLUMNS + 1), random(2, COLUMNS // 2), random(COLUMNS, 2), torch.tensor(1.0)):
        with pytest.raises(ShapeMismatchError, match="to_q"):
            layer(x)


def test_gradients_are_recorded_where_they_are_asked_for():
    layer, x = ready(None, random(ROWS)), random(2, COLUMNS).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantize().sum(0).expand(2, COLUMNS))
    layer.bias.requires_grad_()
    layer(x.detach()).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((ROWS,), 2.0))
    with torch.no_grad():
        assert not layer(x).requires_grad


def changed_in_place(layer):
    layer.weight.scales.mul_(2)
    layer.bias.add_(1)


def others_assigned(layer):
    layer.load_state_dict(ready(None, random(ROWS, seed=6), seed=5).state_dict(), assign=True)


def others_copied(layer):
    layer.load_state_dict(ready(None, random(ROWS, seed=6), seed=5).state_dict())


def others_pointed_to(layer):
    layer.weight.packed.data = layer_of(seed=5).weight.packed
    layer.bias.data = random(ROWS, seed=6)


def other_weight(layer):
    layer.weight = layer_of(seed=5).weight


def other_inputs(layer):
    layer.inputs = InputFormat("per_token", 4)


def no_bias(layer):
    layer.bias = None


def shared(layer):
    layer.share_memory()


def cast(layer):
    layer.to(torch.bfloat16)


def hooked(layer):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(layer, torch.device("cpu"), offload_buffers=True)


@pytest.mark.parametrize(
    "change",
    [
        changed_in_place, others_assigned, others_copied, others_pointed_to, other_weight, other_inputs, no_bias,
        shared, cast,
    ],
)  # fmt: skip
def test_whatever_changes_it_takes_effect(change):
    layer, x = ready(None, random(ROWS, seed=3)), random(3, COLUMNS, seed=1)
    before = layer(x)
    with torch.no_grad():
        change(layer)
    expected = long_way(layer, x)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x), expected)
    assert torch.equal(expected, before) == (change is shared)


def test_hooks_of_offloading_bring_the_codes():
    layer, x = ready(None, random(ROWS, seed=3)), random(3, COLUMNS, seed=1)
    before = layer(x)
    hooked(layer)
    for _ in range(3):
        assert torch.equal(layer(x), before)
        assert layer.weight.packed.is_meta


def test_layers_that_share_a_weight_keep_their_own_bias_and_inputs():
    a, x = ready(None, random(ROWS, seed=3)), random(3, COLUMNS, seed=1)
    b = QuantizedLinear(a.form, InputFormat("per_token", 8), bias=False)
    b.weight = a.weight
    expected = long_way(a, x), long_way(b, x)
    for _ in range(2):
        assert torch.equal(a(x), expected[0])
        assert torch.equal(b(x), expected[1])


def test_defaults_of_torch_do_not_matter():
    layer, x = ready(), random(2, COLUMNS)
    before = layer(x)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(layer(x), before)
        assert torch.equal(long_way(layer, x), before)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(layer(x), before)
        assert torch.equal(long_way(layer, x), before)


def test_a_traced_layer_is_no_constant():
    layer, x, other = ready(), random(2, COLUMNS), random(2, COLUMNS, seed=9)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch says that sizes become constants, and that tracing grows old
        traced = torch.jit.trace(layer, x)
    torch.testing.assert_close(traced(other), layer(other), rtol=1e-5, atol=1e-5)


def test_a_fake_tensor_has_a_shape_and_no_values():
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer, x = ready(), random(2, COLUMNS)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(x)).shape == (2, ROWS)


def test_a_compiled_layer_has_the_kernel_in_its_graph():
    layer, x, called = ready(), random(4, COLUMNS), []

    def backend(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes if "arrowquant_nb" in str(node.target))
        return graph.forward

    with torch.no_grad():
        assert torch.equal(torch.compile(layer, backend=backend, fullgraph=True)(x), layer(x))
    assert [name.split(".")[1] for name in called] == ["float_product"]


def test_copies_are_made_without_it_and_it_holds_nobody_alive():
    layer = ready(None, random(ROWS))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.weight.ready_product is None
        assert torch.equal(other(random(2, COLUMNS)), layer(random(2, COLUMNS)))
    codes = weakref.ref(layer.weight.packed)
    gc.disable()
    try:
        del layer
        assert codes() is None
    finally:
        gc.enable()


def test_old_codes_are_let_go_when_others_take_their_place():
    layer = ready()
    codes = weakref.ref(layer.weight.packed)
    layer.load_state_dict(layer_of(seed=5).state_dict(), assign=True)
    layer(random(1, COLUMNS))
    assert codes() is None


def test_it_is_made_once_whatever_the_inputs_and_for_no_convolution():
    layer = ready()
    kept = layer.weight.ready_product
    for dtype in (torch.float16, torch.float64, torch.bfloat16):
        layer(random(2, COLUMNS, dtype=dtype))
        assert layer.weight.ready_product is kept
    tensor = quantize_array(random(8, 4, 3, 3).numpy(), 4, 32, "uls")
    convolution = QuantizedConv2d.from_arrays(tensor, inputs=InputFormat("per_token", 8))
    convolution(random(1, 4, 5, 5))
    assert convolution.weight.ready_product is None


def hook_of_every_module(kind, hook):
    return getattr(torch.nn.modules.module, f"register_module_{kind}_hook")(hook)


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_of_a_call_run(kind, everywhere):
    layer, seen = ready(), []

    def hook(module, *_):
        seen.append(module)

    register = hook_of_every_module if everywhere else lambda kind, hook: getattr(layer, f"register_{kind}_hook")(hook)
    handle = register(kind, hook)
    try:
        layer(random(2, COLUMNS).requires_grad_("backward" in kind)).sum()
        if "backward" in kind:
            layer(random(2, COLUMNS).requires_grad_()).sum().backward()
        assert seen[:1] == [layer]
    finally:
        handle.remove()
    del seen[:]
    layer(random(2, COLUMNS))
    assert not seen


def test_a_hook_may_change_what_comes_out():
    layer, x = ready(), random(2, COLUMNS)
    before = layer(x)
    with layer.register_forward_hook(lambda _, __, y: y + 1):
        assert torch.equal(layer(x), before + 1)
    with layer.register_forward_pre_hook(lambda _, given: (2 * given[0],)):
        assert torch.equal(layer(x), 2 * before)
    assert torch.equal(layer(x=x), before)


def test_a_forward_of_its_own_is_called():
    layer, x = ready(), random(2, COLUMNS)
    before, forward = layer(x), layer.forward
    layer.forward = lambda x: forward(x) + 1  # as what moves layers between devices does
    assert torch.equal(layer(x), before + 1)
    del layer.forward
    layer.compile(backend=lambda graph, _: lambda *given: [2 * y for y in graph.forward(*given)])
    with torch.no_grad():
        assert torch.equal(layer(x), 2 * before)


def test_without_a_way_to_read_tensors_layers_go_the_long_way(monkeypatch):
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    layer, x = layer_of(), random(2, COLUMNS)
    before = layer(x)
    assert layer.weight.ready_product is None
    assert torch.equal(layer(x), before)


def test_a_build_without_compiled_kernels_goes_the_long_way(monkeypatch):
    layer, x = ready(), random(2, COLUMNS)
    monkeypatch.setattr("arrowquant_nb.runtime.modules._multiply_ready", _kernels._never_ready)
    assert torch.equal(layer(x), long_way(ready(), x))
    assert torch.equal(layer.forward(x), layer(x))


def test_tensors_that_stand_for_others():
    layer, x = ready(), random(3, COLUMNS)
    for y in (torch.vmap(layer)(x), layer(x.as_subclass(type("Own", (torch.Tensor,), {}))).as_subclass(torch.Tensor)):
        torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)
    assert layer(x.to("meta")).shape == (3, ROWS)
    slopes = torch.func.jacrev(layer)(x[0])
    torch.testing.assert_close(slopes, layer.dequantize(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_inputs_are_refused(layout):
    for layer in (layer_of(), ready()):
        with pytest.raises(ConfigurationError, match="to_dense"):
            layer(getattr(random(3, COLUMNS), layout)())


class Scaled(QuantizedLinear):
    """As a user may derive one."""

    def forward(self, x, scale=2):
        return super().forward(x) * scale


def test_a_derived_layer_is_called_by_its_own_forward():
    layer, x = Scaled.from_arrays(quantize_array(random(ROWS, COLUMNS).numpy(), 4, 32, "uls")), random(2, COLUMNS)
    expected = layer_of()(x)
    for _ in range(3):
        assert torch.equal(layer(x), 2 * expected)
        assert torch.equal(layer(x, 3), 3 * expected)
        assert torch.equal(layer(x, scale=4), 4 * expected)


def test_what_takes_the_place_of_a_call_or_of_forward_is_called():
    layer, x, called, call = ready(), random(2, COLUMNS), [], torch.nn.Module.__call__

    def watched(module, *given, **named):
        called.append(module)
        return call(module, *given, **named)

    for base in (torch.nn.Module, torch.nn.Linear):  # as torch.fx does while it traces
        with mock.patch.object(base, "__call__", watched, create=True):
            layer(x)
    assert called == [layer, layer]
    with mock.patch.object(QuantizedLinear, "forward", lambda _, x: -x):
        assert torch.equal(layer(x), -x)


def test_hooks_may_take_and_give_arguments_by_name():
    layer, x, seen = ready(), random(2, COLUMNS), []
    expected = layer(x)

    def without_more(_, given, named):
        seen.append((len(given), sorted(named)))
        return (*given, *named.values())[:1], {}

    with layer.register_forward_pre_hook(without_more, with_kwargs=True):
        assert torch.equal(layer(x, scale=2), expected)
        assert torch.equal(layer(x=x), expected)
    assert seen == [(1, ["scale"]), (0, ["x"])]
    forward = layer.forward
    layer.forward = lambda x, scale: forward(x) * scale
    assert torch.equal(layer(x, 2), 2 * expected)


class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_bias_that_is_computed():
    from torch.nn.utils import parametrize, prune

    bias, x = random(ROWS, seed=3), random(2, COLUMNS)
    layer, without = ready(None, bias), ready()(x)
    parametrize.register_parametrization(layer, "bias", Doubled())
    for _ in range(2):
        torch.testing.assert_close(layer(x), without + 2 * bias)
    layer = ready(None, bias)
    prune.custom_from_mask(layer, "bias", torch.arange(ROWS) % 2)
    for _ in range(2):
        torch.testing.assert_close(layer(x), without + bias * (torch.arange(ROWS) % 2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_rows_of_many_lengths():
    layer, rows = ready(), [random(2, COLUMNS), random(3, COLUMNS, seed=1)]
    given = torch.nested.nested_tensor(rows, layout=torch.jagged)
    for y, x in zip(layer(given).unbind(), rows, strict=True):
        torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=5e-5)


def both(layer):
    """A layer with a product that is ready, and the same without: the other way must have no surprise either."""
    return layer, copy.deepcopy(layer)


def test_tensors_whose_values_do_not_lie_in_memory():
    zeros = torch._efficientzerotensor((2, COLUMNS))
    gone = torch.ones(2, COLUMNS)
    gone.untyped_storage().resize_(0)
    for layer in both(ready(None, random(ROWS, seed=3))):
        assert torch.equal(layer(zeros), layer.bias.expand(2, ROWS))
        with pytest.raises(RuntimeError, match="not allocated"):
            layer(gone)
    for layer in both(ready()):
        x = random(3, COLUMNS)
        torch.testing.assert_close(torch.func.functionalize(layer)(x), layer(x), rtol=1e-5, atol=5e-5)
    tensor = quantize_array(random(ROWS, 1).numpy(), 4, 32, "uls")
    narrow = QuantizedLinear.from_arrays(tensor)
    narrow(random(1, 1))
    for layer in both(narrow):
        x = torch.tensor([[1 + 2j]]).conj().imag  # its memory has 2
        torch.testing.assert_close(layer(x), -2 * layer.dequantize().T)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own rules of derivatives are scripts
def test_derivatives_are_carried_forward():
    x, slope = random(2, COLUMNS), random(2, COLUMNS, seed=1)
    for layer in both(ready()):
        with torch.autograd.forward_ad.dual_level():
            y = torch.autograd.forward_ad.unpack_dual(layer(torch.autograd.forward_ad.make_dual(x, slope)))
        torch.testing.assert_close(y.tangent, slope @ layer.dequantize().T, rtol=1e-5, atol=5e-5)


def test_modes_that_see_every_operator_see_the_product():
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    x, other = random(2, COLUMNS), random(2, COLUMNS, seed=1)
    for layer in both(ready()):
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 2 * ROWS * COLUMNS
        torch.testing.assert_close(make_fx(layer)(x)(other), layer(other), rtol=1e-5, atol=5e-5)


def test_a_float_weight_in_the_place_of_codes_is_refused():
    layer = ready()
    layer.name = "to_q"
    layer.weight = torch.nn.Parameter(torch.zeros(ROWS, COLUMNS))
    with pytest.raises(ConfigurationError, match="to_q: its weight is Parameter"):
        layer(random(2, COLUMNS))
