"""Which method a modality calls for, which one can be used, and why.

Text and code: at 2 bits sign-plane codes (R2Q) or the affine grid, whichever has the smaller error in a layer, above
that an affine grid; and timestep groups. Image and audio: an affine grid and spatial equalization. With calibration
every grid is compensated by GPTQ; without it the best data-free grid is used. Knows plain values only.
"""

from typing import Final, NamedTuple

from arrowquant_nb.errors import ConfigurationError

DIRECT_GRID: Final = "uls"  # least weight error of the data-free grids at 2, 4 and 8 bits
SIGN_PLANES: Final = "r2q"  # two sign bits a weight: there is no other width of it
COMPENSATED: Final = "gptq"  # over the direct grid
DIRECT_METHODS: Final = ("rtn", "mse", "uls", "hqq", "r2q")
AVAILABLE_METHODS: Final = (*DIRECT_METHODS, COMPENSATED)
_SEQUENCE: Final = ("text", "code")
_SIGNAL: Final = ("image", "audio")


class StrategyChoice(NamedTuple):
    """What a modality calls for and what is used."""

    preferred_method: str
    used_method: str
    methods: tuple[str, ...]
    compensated: bool
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
    calibration: str = "",
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
    calibration : str
        Where the inputs come from, or why there are none; for the reason.

    Raises
    ------
    ConfigurationError
        Unknown modality, or a method that does not exist at all or at this width.
    """
    if modality in _SEQUENCE:
        preferred = SIGN_PLANES if bit_width == 2 else DIRECT_GRID
        time_aware, spatial = enable_time_aware, False
    elif modality in _SIGNAL:
        preferred = COMPENSATED
        time_aware = enable_time_aware and activation_bit_width is not None
        spatial = enable_spatial and has_calibration
    else:
        raise ConfigurationError(f"modality {modality!r} is unknown; use one of {', '.join(_SEQUENCE + _SIGNAL)}")
    if method != "auto":
        return _insisted(preferred, method, bit_width, has_calibration, time_aware, spatial, calibration)
    methods = (DIRECT_GRID, SIGN_PLANES) if preferred == SIGN_PLANES else (DIRECT_GRID,)
    used = preferred if preferred != COMPENSATED or has_calibration else DIRECT_GRID
    reason = _reason(modality, bit_width, preferred, has_calibration, calibration)
    return StrategyChoice(preferred, used, methods, has_calibration, time_aware, spatial, reason)


def _reason(modality: str, bit_width: int, preferred: str, has_calibration: bool, calibration: str) -> str:
    called = f"{modality} at {bit_width} bits calls for {preferred}"
    where = f" ({calibration})" if calibration else ""
    if preferred == SIGN_PLANES:
        called += f"; each layer takes it or {DIRECT_GRID}, whichever has the smaller error at no more bytes"
        return f"{called}, compensated by gptq{where}" if has_calibration else called
    if has_calibration:
        over = "" if preferred == COMPENSATED else ", compensated by gptq"
        return f"{called}{over}{where}"
    if preferred == COMPENSATED:
        return f"{called}, but there is no calibration data{where}: {DIRECT_GRID}, the best data-free grid, is used"
    return called


def _insisted(
    preferred: str,
    method: str,
    bit_width: int,
    has_calibration: bool,
    time_aware: bool,
    spatial: bool,
    calibration: str,
) -> StrategyChoice:
    """Return the strategy of a user who names the method."""
    if method not in AVAILABLE_METHODS:
        raise ConfigurationError(f"method {method!r} is not available; use auto, {', '.join(AVAILABLE_METHODS)}")
    if method_at(method, bit_width) != method:
        raise ConfigurationError(
            f"method {method} exists at 2 bits only, not at {bit_width}: set bit_width=2, or method {DIRECT_GRID}"
        )
    if method != COMPENSATED:
        reason = f"method {method} set by the user"
        return StrategyChoice(preferred, method, (method,), False, time_aware, spatial, reason)
    if has_calibration:
        reason = "method gptq set by the user" + (f" ({calibration})" if calibration else "")
        return StrategyChoice(preferred, method, (DIRECT_GRID,), True, time_aware, spatial, reason)
    reason = "method gptq set by the user, but there is no calibration data" + (
        f" ({calibration})" if calibration else ""
    )
    reason += f": {DIRECT_GRID}, the best data-free grid, is used"
    return StrategyChoice(preferred, DIRECT_GRID, (DIRECT_GRID,), False, time_aware, spatial, reason)
