import itertools

import pytest

from arrowquant_nb.core.strategy import AVAILABLE_METHODS, method_at, other_method_reason, select
from arrowquant_nb.errors import ConfigurationError


@pytest.mark.parametrize(
    ("modality", "bit_width", "preferred"),
    [
        ("text", 2, "r2q"),
        ("code", 2, "r2q"),
        ("text", 4, "uls"),
        ("code", 8, "uls"),
        ("image", 2, "gptq"),
        ("audio", 8, "gptq"),
    ],
)
def test_preferred_methods(modality, bit_width, preferred):
    assert select(modality, bit_width, "auto", False, True, True).preferred_method == preferred


def test_without_calibration_the_best_direct_grid_is_used_and_said():
    choice = select("image", 4, "auto", False, True, True)
    assert (choice.used_method, choice.methods, choice.compensated, choice.spatial) == ("uls", ("uls",), False, False)
    assert choice.reason == (
        "image at 4 bits calls for gptq, but there is no calibration data: uls, the best data-free grid, is used"
    )


def test_with_calibration_every_grid_is_compensated_and_its_source_is_said():
    choice = select("audio", 2, "auto", True, True, True, calibration="128 trajectories")
    assert (choice.used_method, choice.methods, choice.compensated) == ("gptq", ("uls",), True)
    assert choice.reason == "audio at 2 bits calls for gptq (128 trajectories)"
    choice = select("text", 4, "auto", True, True, True)
    assert (choice.methods, choice.compensated) == (("uls",), True)
    assert choice.reason == "text at 4 bits calls for uls, compensated by gptq"


@pytest.mark.parametrize("calibrated", [False, True])
def test_two_bit_text_takes_sign_planes_or_their_rival_per_layer(calibrated):
    choice = select("code", 2, "auto", calibrated, True, True)
    assert (choice.preferred_method, choice.methods, choice.compensated) == ("r2q", ("uls", "r2q"), calibrated)
    assert "each layer takes it or uls, whichever has the smaller error at no more bytes" in choice.reason


def test_gptq_asked_for_without_calibration_gives_way_and_says_so():
    choice = select("image", 4, "gptq", False, True, True, calibration="no file")
    assert (choice.used_method, choice.compensated) == ("uls", False)
    assert choice.reason == (
        "method gptq set by the user, but there is no calibration data (no file): uls, the best data-free grid, is used"
    )
    assert select("image", 4, "gptq", True, True, True).compensated
    assert not select("image", 4, "uls", True, True, True).compensated


def test_sign_planes_exist_at_two_bits_only():
    assert [method_at("r2q", bits) for bits in (2, 4, 8)] == ["r2q", "uls", "uls"]
    assert [method_at("hqq", bits) for bits in (2, 4, 8)] == ["hqq"] * 3
    assert other_method_reason("r2q", 2) == other_method_reason("mse", 8) == ""
    assert other_method_reason("r2q", 8) == "r2q exists at 2 bits only, so INT8 uses uls"
    with pytest.raises(ConfigurationError, match="method r2q exists at 2 bits only, not at 4: set bit_width=2"):
        select("image", 4, "r2q", False, True, True)


def test_second_parts_follow_modality_and_switches():
    for modality, aware, spatial in itertools.product(("text", "code", "image", "audio"), (False, True), (False, True)):
        choice = select(modality, 4, "auto", True, aware, spatial)
        assert choice.time_aware == (aware and modality in ("text", "code"))
        assert choice.spatial == (spatial and modality in ("image", "audio"))
        assert select(modality, 4, "auto", True, aware, spatial, activation_bit_width=8).time_aware == aware


def test_every_combination_uses_a_method_that_exists():
    for modality, bits, method in itertools.product(
        ("text", "code", "image", "audio"), (2, 4, 8), ("auto", *AVAILABLE_METHODS)
    ):
        if method == "r2q" and bits != 2:
            continue
        choice = select(modality, bits, method, False, True, True)
        assert choice.used_method in AVAILABLE_METHODS
        assert choice.reason
        if method not in ("auto", "gptq"):
            assert (choice.used_method, choice.reason) == (method, f"method {method} set by the user")


def test_unknown_words_are_errors():
    with pytest.raises(ConfigurationError, match="modality 'video' is unknown"):
        select("video", 4, "auto", False, True, True)
    with pytest.raises(ConfigurationError, match="method 'awq' is not available; use auto, rtn, mse, uls"):
        select("text", 4, "awq", False, True, True)
