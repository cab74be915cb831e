"""The time that a block of calls is said to be at: what may be given, and what is refused with what to give."""

import pytest

from arrowquant_nb.errors import ConfigurationError, ValidationError

torch = pytest.importorskip("torch")

from arrowquant_nb.runtime import current_time, time_context  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (-1, "timestep -1 is not in 0..1000: state .* n_timesteps"),
        (float("nan"), "timestep nan is not in 0..1000"),
        (float("inf"), "timestep inf is not in 0..1000"),
        (torch.tensor([250.0, 1001.0]), "timestep 1001 is not in 0..1000"),
        ([], "a time of no sample"),
        (torch.zeros(0, 3), "a time of no sample"),
    ],
)
def test_a_timestep_outside_of_those_of_training_is_named(bad, said):
    with pytest.raises(ValidationError, match=said), time_context(bad):
        pass
    assert current_time() is None


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("abc", "'abc'"),
        ("250", "'250'"),
        (None, "None"),
        (True, "True"),
        ([1, None], r"\[1, None\]"),
        ([[1, 2], [3]], r"\[\[1, 2\], \[3\]\]"),
        (1j, "1j"),
        ({}, "{}"),
        (torch.tensor(True), r"tensor\(True\)"),
        (torch.tensor(1j), r"tensor\(0\.\+1\.j\)"),
        (torch.empty(2, device="meta"), r"tensor\(\.\.\., device='meta', size=\(2,\)\)"),
        ("x" * 1000, "'x{79}\\.\\.\\. is"),
    ],
)
def test_what_is_no_number_is_named_with_what_to_give(bad, said):
    with pytest.raises(
        ConfigurationError, match=rf"the time {said}.* a real number .*: give such as 250, or \[250, 500"
    ):
        time_context(bad).__enter__()
    assert current_time() is None
