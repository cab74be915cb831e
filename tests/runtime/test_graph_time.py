"""What torch.export and torch.jit.trace record of models whose grids follow the timestep is right at every timestep."""

import itertools
import warnings

import numpy as np
import pytest

from arrowquant_nb.arrays import quantize_tensor
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.quantizers.time_tables import LayerTimeTable, TimeGroupParams

torch = pytest.importorskip("torch")

from arrowquant_nb.runtime import InputFormat, ModelTime, QuantizedLinear, follow_time, time_context  # noqa: E402
from arrowquant_nb.runtime.graph_time import GraphTime  # noqa: E402
from arrowquant_nb.time_reading import TimeReading  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]
COLUMNS, MASK = 32, 7


def table(first=0):
    """Grids so coarse and so far apart that the wrong one shows."""
    ends = (first, 333, 334, 700, 1000)
    groups = tuple(
        TimeGroupParams((low, high), 0.0625 * 2**n, 3 * n, COLUMNS)
        for n, (low, high) in enumerate(itertools.pairwise(ends))
    )
    return LayerTimeTable.of_groups("q", groups)


def layer(seed, first=0):
    generator = np.random.default_rng(seed)
    tensor = quantize_tensor(generator.standard_normal((COLUMNS, COLUMNS)).astype(np.float32), 4, 32, "rtn")
    means = generator.standard_normal((4, COLUMNS)).astype(np.float32)
    return QuantizedLinear.from_arrays(tensor, None, InputFormat("static", 4, table(first)), means)


class Denoiser(torch.nn.Module):
    """Two layers, the second over tokens of all samples and a frame each."""

    def __init__(self, first=0):
        super().__init__()
        self.one, self.two = layer(0), layer(1, first)

    def forward(self, hidden_states, timestep=None):
        x = self.one(hidden_states)
        return self.two(torch.cat([x, x.flip(-1)], 1).view(-1, 2, COLUMNS)).view(x.shape[0], -1, COLUMNS)


class Told(torch.nn.Module):
    """A model that says the time itself."""

    def __init__(self):
        super().__init__()
        self.one = layer(0)

    def forward(self, x, noise):
        with time_context(noise, n_timesteps=1):
            return self.one(x)


class FluxTransformer2DModel(Denoiser):
    """Given fractions by its pipeline."""


class Masked(torch.nn.Module):
    """A language model of which nothing but the masks says the time."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Parameter(
            torch.from_numpy(np.random.default_rng(2).standard_normal((9, COLUMNS))).float()
        )
        self.one = layer(0)

    def forward(self, input_ids):
        return self.one(self.words[input_ids])


def tokens(samples, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((samples, 2, COLUMNS)).astype(np.float32))


def exported(model, *arguments, **options):
    return torch.export.export(model, arguments, strict=False, **options).module()


def traced(model, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that sizes become constants, and that tracing grows old
        return torch.jit.trace(model, arguments, check_trace=False)


@pytest.mark.parametrize("recorded", [exported, traced])
def test_what_is_recorded_at_one_timestep_is_right_at_all(recorded):
    model = follow_time(Denoiser(), n_timesteps=1000)
    x = tokens(2)
    with torch.no_grad():
        program = recorded(model, x, torch.tensor([500, 500]))
        outputs = []
        for times in ([0, 0], [332, 332], [333, 333], [334, 334], [999, 1000], [10, 800], [700, 333]):
            outputs.append(model(x, torch.tensor(times)))
            torch.testing.assert_close(program(x, torch.tensor(times)), outputs[-1], rtol=1e-5, atol=1e-5)
    for one, other in zip(outputs, outputs[2:], strict=False):
        assert (one - other).abs().max() > 0.05


def test_a_program_takes_batches_of_other_sizes_and_one_time_for_them():
    model, batch = follow_time(Denoiser(), n_timesteps=1000), torch.export.Dim("batch", min=2, max=8)
    program = exported(model, tokens(3), torch.tensor([1, 2, 3]), dynamic_shapes=({0: batch}, {0: batch}))
    single = exported(model, tokens(3), torch.tensor(500), dynamic_shapes=({0: batch}, {}))
    for n in (2, 5):
        times = torch.arange(n) * 300 % 1000
        with torch.no_grad():
            torch.testing.assert_close(program(tokens(n), times), model(tokens(n), times), rtol=1e-5, atol=1e-5)
            at = times[1]
            torch.testing.assert_close(single(tokens(n), at), model(tokens(n), at), rtol=1e-5, atol=1e-5)


def test_a_program_counts_masks_and_takes_fractions():
    model = follow_time(Masked(), mask_token_id=MASK)
    ids = torch.tensor([[MASK, 1, 2, 3], [MASK, MASK, MASK, 3]])
    fractions = follow_time(FluxTransformer2DModel())
    with torch.no_grad():
        program = exported(model, ids.flip(0))
        torch.testing.assert_close(program(ids), model(ids), rtol=1e-5, atol=1e-5)
        program = exported(fractions, tokens(2), torch.tensor([0.5, 0.5]))
        times = torch.tensor([0.25, 0.75])
        torch.testing.assert_close(program(tokens(2), times), fractions(tokens(2), times), rtol=1e-5, atol=1e-5)


def test_a_program_of_a_model_that_says_the_time_itself():
    model, times = Told(), torch.tensor([0.1, 0.9])
    with torch.no_grad():
        program = exported(model, tokens(2), times.flip(0))
        torch.testing.assert_close(program(tokens(2), times), model(tokens(2), times), rtol=1e-5, atol=1e-5)
        with pytest.raises(RuntimeError, match=r"a timestep is not in 0\.\.1: state how the model counts"):
            program(tokens(2), times + 1)


def test_a_program_ends_at_a_timestep_that_no_grid_is_for():
    program = exported(follow_time(Denoiser(first=300), n_timesteps=1000), tokens(2), torch.tensor([500, 500]))
    with pytest.raises(RuntimeError, match=r"Denoiser was called with a timestep that is not between 0 and 1000"):
        program(tokens(2), torch.tensor([500, 1001]))
    with pytest.raises(RuntimeError, match=r"q: the grids of its inputs cover timesteps 300\.\.999 of 1000"):
        program(tokens(2), torch.tensor([500, 299]))


def test_what_cannot_be_exported_says_what_can():
    model = follow_time(Denoiser())
    with pytest.raises(ConfigurationError, match="cannot be exported with strict=True: export with strict=False"):
        torch.export.export(model, (tokens(2), torch.tensor([500, 500])), strict=True)
    with pytest.raises(ConfigurationError, match=r"whether its timestep is a fraction: call the model once before"):
        exported(model, tokens(2), torch.tensor([500.0, 500.0]))
    with torch.no_grad():
        model(tokens(2), torch.tensor([500.0, 500.0]))
        exported(model, tokens(2), torch.tensor([500.0, 500.0]))
    assert model.forward.reading == TimeReading((0.0, 1000.0))


def test_a_graph_chooses_the_groups_that_calls_choose():
    """At all whole timesteps, at every boundary and at its neighbours among float32 values."""
    ends = np.array([333, 334, 700, 1000], np.float32)
    near = np.concatenate([np.nextafter(ends, np.float32(to)) for to in (0, 1000)])
    for times in (np.arange(1001, dtype=np.float32), near, np.linspace(0, 1, 777, dtype=np.float32) * 1000):
        moment = GraphTime.between(torch.from_numpy(times), (0.0, 1000.0), "beyond")
        expected = ModelTime.of(times.astype(np.float64) / 1000, 1)
        assert moment.values.tolist() == list(expected.values)
        assert moment.groups_in(table()).tolist() == list(expected.groups_in(table()))
    counted = GraphTime.of(torch.arange(1000).double(), 1000)
    assert counted.values.tolist() == list(ModelTime.of(np.arange(1000), 1000).values)
