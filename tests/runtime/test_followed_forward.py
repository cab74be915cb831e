"""Layers see the timestep of their own model call: by position or keyword, in threads, after errors, in copies."""

import copy
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from arrowquant_nb.errors import ConfigurationError, MetadataError, ValidationError

torch = pytest.importorskip("torch")

from arrowquant_nb.runtime import ModelTime, current_time, follow_time, time_context  # noqa: E402
from arrowquant_nb.runtime.loading import follow_tables  # noqa: E402

pytestmark = pytest.mark.torch


class Seeing(torch.nn.Module):
    """Returns the time it saw; may wait for others, fail, or call another model."""

    def forward(self, hidden_states, timestep=None, inner=None, wait=None, fail=False):
        """Docstring of forward."""
        before = current_time()
        if wait is not None:
            wait.wait(10)
        if fail:
            raise RuntimeError("on purpose")
        inside = None if inner is None else inner(hidden_states, timestep=10)
        assert current_time() == before
        return before.values if inside is None else (before.values, inside)


class Masked(torch.nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return current_time().values


class FluxTransformer2DModel(Seeing):
    """Given fractions by its pipeline."""


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (torch.tensor(250), (0.25,)),
        (torch.tensor([250, 250]), (0.25,)),
        (torch.tensor([250.0, 500.0]), (0.25, 0.5)),
        (125, (0.125,)),
        (1000.0, (1.0,)),
    ],
)
def test_the_timestep_is_taken_by_position_and_by_keyword(given, seen):
    model = follow_time(Seeing())
    assert model(X, given) == seen
    assert model(X, timestep=given) == seen
    assert model(hidden_states=X, timestep=given) == seen
    assert current_time() is None


def test_fractions_are_known_by_class_or_stated():
    assert follow_time(FluxTransformer2DModel())(X, torch.tensor([0.25])) == (0.25,)
    assert follow_time(Seeing(), n_timesteps=1)(X, 0.5) == (0.5,)
    with pytest.raises(ValidationError, match="n_timesteps"):
        follow_time(Seeing(), n_timesteps=1)(X, 500)


@pytest.mark.parametrize("bad", ["abc", True, torch.tensor(1j), torch.empty(2, device="meta")], ids=str)
def test_a_call_at_a_time_that_is_no_number_is_refused(bad):
    with pytest.raises(ConfigurationError, match=r"the time .* is not a real number"):
        follow_time(Seeing())(X, bad)


@pytest.mark.parametrize("bad", [0, -5, float("nan"), float("inf"), "a", True])
def test_a_number_of_timesteps_that_none_can_be_divided_by_is_refused(bad):
    for counted in (
        lambda: follow_time(Seeing(), n_timesteps=bad),
        lambda: follow_tables(Seeing(), None, bad),
        lambda: ModelTime.of(5, bad),
    ):
        with pytest.raises(ConfigurationError, match=f"n_timesteps {bad!r} is not a finite number above 0"):
            counted()


def test_a_range_of_times_that_is_none_is_refused():
    for bad in (5, "ab", (0, 0), (0, float("nan")), (1,)):
        with pytest.raises(MetadataError, match="is not two different finite numbers"):
            follow_time(Seeing(), time_range=bad)


def test_the_time_of_a_masked_model_is_the_share_of_masked_tokens_in_thousandths():
    model = follow_time(Masked(), mask_token_id=2)
    ids = torch.tensor([[2, 5, 5, 5], [2, 2, 5, 5], [2, 2, 2, 2]])
    assert model(ids) == pytest.approx((0.25, 0.5, 0.999))
    assert model(input_ids=ids[:1]) == (0.25,)


def test_name_docstring_and_signature_stay():
    model = follow_time(Seeing())
    assert inspect.signature(model.forward) == inspect.signature(Seeing().forward)
    assert model.forward.__doc__ == "Docstring of forward."
    assert model.forward.__name__ == "forward"


def test_threads_see_their_own_time():
    model, wait = follow_time(Seeing()), Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda t: model(X, t, wait=wait), (100, 200, 300, 400)))
    assert seen == [ModelTime.of(t).values for t in (100, 200, 300, 400)]


def test_an_error_in_forward_leaves_no_time_behind():
    model = follow_time(Seeing())
    with pytest.raises(RuntimeError, match="on purpose"):
        model(X, 500, fail=True)
    assert current_time() is None


def test_a_model_inside_a_model_has_its_own_time_and_without_a_timestep_that_of_the_outer_one():
    outer, inner = follow_time(Seeing()), follow_time(Seeing())
    assert outer(X, 500, inner) == ((0.5,), ModelTime.of(10).values)
    assert outer(X, 500, Seeing()) == ((0.5,), (0.5,))
    with time_context(750):
        assert outer(X) == (0.75,)
        assert outer(X, 250) == (0.25,)
        assert current_time() == ModelTime((0.75,))


def test_following_twice_is_following_once():
    model = follow_time(follow_time(Seeing()), n_timesteps=500)
    assert model(X, 125) == (0.25,)


def test_copies_and_unpickled_models_run_themselves():
    model = follow_time(Seeing())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other(X, 250) == (0.25,)
        assert other.forward.__wrapped__.__self__ is other


def test_a_model_without_a_timestep_is_refused():
    with pytest.raises(ConfigurationError, match="time_context"):
        follow_time(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="'sigma'"):
        follow_time(Seeing(), argument="sigma")
