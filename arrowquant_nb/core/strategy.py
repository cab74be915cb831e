"""Which method a modality calls for, which one can be used, and why.

Text and code: sign-plane codes (R2Q) at 2 bits, an affine grid above, and timestep groups. Image and audio: GPTQ and
spatial equalization, both of which need calibration data. Without them the best data-free grid is used.
Knows plain values only.
"""

from typing import Final, NamedTuple

from arrowquant_nb.errors import ConfigurationError

DIRECT_GRID: Final = "uls"  # least weight error of the data-free grids at 2, 4 and 8 bits
AVAILABLE_METHODS: Final = ("rtn", "mse", "uls", "hqq", "r2q")
SIGN_PLANES: Final = "r2q"  # two sign bits a weight: there is no other width of it
_SEQUENCE: Final = ("text", "code")
_SIGNAL: Final = ("image", "audio")


class StrategyChoice(NamedTuple):
    """What a modality calls for and what is used."""

    preferred_method: str
    used_method: str
    time_aware: bool
    spatial: bool
    reason: str


def method_at(method: str, bit_width: int) -> str:
    """Return the method for one layer's width: `method`, or the direct grid where r2q has no such width."""
    return DIRECT_GRID if method == SIGN_PLANES and bit_width != 2 else method


def other_method_reason(method: str, bit_width: int) -> str:
    """Return why `method_at` gives another method than the run's; empty where it does not."""
    used = method_at(method, bit_width)
    return "" if used == method else f"{method} exists at 2 bits only, so INT{bit_width} uses {used}"


def select(
    modality: str,
    bit_width: int,
    method: str,
    has_calibration: bool,
    enable_time_aware: bool,
    enable_spatial: bool,
    activation_bit_width: int | None = None,
) -> StrategyChoice:
    """Return the strategy for a modality.

    Parameters
    ----------
    modality : str
        text, code, image or audio.
    bit_width : int
        2, 4 or 8.
    method : str
        `auto`, or the method the user insists on.
    has_calibration : bool
        Whether layer inputs are at hand.
    enable_time_aware, enable_spatial : bool
        The user's switches for the second part of the strategy.
    activation_bit_width : int or None
        When set, image and audio are time-aware too.

    Raises
    ------
    ConfigurationError
        Unknown modality, or a method that does not exist at all or at this width.
    """
    if modality in _SEQUENCE:
        preferred = "r2q" if bit_width == 2 else DIRECT_GRID
        time_aware, spatial = enable_time_aware, False
    elif modality in _SIGNAL:
        preferred = "gptq"
        time_aware = enable_time_aware and activation_bit_width is not None
        spatial = enable_spatial and has_calibration
    else:
        raise ConfigurationError(f"modality {modality!r} is unknown; use one of {', '.join(_SEQUENCE + _SIGNAL)}")
    if method != "auto":
        if method not in AVAILABLE_METHODS:
            raise ConfigurationError(f"method {method!r} is not available; use auto, {', '.join(AVAILABLE_METHODS)}")
        if method_at(method, bit_width) != method:
            raise ConfigurationError(
                f"method {method} exists at 2 bits only, not at {bit_width}: set bit_width=2, or method {DIRECT_GRID}"
            )
        return StrategyChoice(preferred, method, time_aware, spatial, f"method {method} set by the user")
    if preferred in AVAILABLE_METHODS:
        return StrategyChoice(
            preferred, preferred, time_aware, spatial, f"{preferred} suits {modality} at {bit_width} bits"
        )
    why = (
        "there is no calibration data"
        if preferred == "gptq" and not has_calibration
        else f"this version does not have {preferred}"
    )
    called = f"{modality} at {bit_width} bits calls for {preferred}"
    reason = f"{called}, but {why}: {DIRECT_GRID}, the best data-free grid, is used"
    if enable_spatial and modality in _SIGNAL and not has_calibration:
        reason += "; spatial equalization is skipped for the same reason"
    return StrategyChoice(preferred, DIRECT_GRID, time_aware, spatial, reason)
