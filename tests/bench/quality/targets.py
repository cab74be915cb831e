"""What was asked for, beside what was measured: computed from the rows of the other sections, never typed in."""

from collections.abc import Callable, Iterator, Mapping

Row = Mapping[str, object]


def rows(content: Mapping[str, Mapping[str, object]]) -> Iterator[dict[str, object]]:
    """Yield a row per target whose sections are there: what, target, measured, reached."""
    found = {section: part["rows"] for section, part in content.items() if section != "targets"}
    for judge in (_matrix, _image, _text, _activations, _gptq):
        yield from judge(found)


def _row(what: str, unit: str, target: float, value: float | None, by: str, *, least: bool) -> dict[str, object]:
    reached = value is not None and (value >= target if least else value <= target)
    sign = "at least" if least else "at most"
    return {
        "what": what,
        "target": f"{sign} {target:.4g} {unit}".strip(),
        "measured": value,
        "by": by,
        "reached": reached,
    }


def _best(found: list[Row], key: str, choose: Callable, keep: Callable[[Row], bool]) -> tuple[float | None, str]:
    mine = [r for r in found if r["by"] == "arrowquant_nb" and key in r and keep(r)]
    if not mine:
        return None, ""
    chosen = choose(mine, key=lambda r: _mean(r[key]))
    return _mean(chosen[key]), f"{chosen['format']}, {float(chosen['bits_per_weight']):.3g} bits"


def _mean(value: object) -> float:
    return sum(value) / len(value) if isinstance(value, list) else float(value)


def _matrix(found: Mapping[str, list[Row]]) -> Iterator[dict[str, object]]:
    matrix = found.get("matrix", [])
    for limit, bits, rotated, target in (
        (4.5, 4, True, 0.073), (4.5, 4, False, 0.086), (4.32, 4, True, 0.084),
        (2.63, 2, True, 0.27), (2.63, 2, False, 0.29), (9.0, 8, True, 0.0052),
    ):  # fmt: skip
        value, by = _best(
            matrix, "relative_error", min,
            lambda r, limit=limit, bits=bits, rotated=rotated: r["bits"] == bits
            and float(r["bits_per_weight"]) <= limit + 0.01 and (rotated or "hadamard" not in str(r["format"])),
        )  # fmt: skip
        how = "" if rotated else ", not rotated"
        yield _row(f"heavy-tailed matrix at {limit:g} bits{how}: relative error", "", target, value, by, least=False)
    ours = next((r for r in matrix if r["by"] == "arrowquant_nb" and r["format"] == "uls k g32 hadamard"), None)
    theirs = next((r for r in matrix if r["format"] == "Q4_K" and "processor_s_per_gb" in r), None)
    if ours is not None:
        seconds = float(ours["processor_s_per_gb"])
        yield _row("INT4 k g32 rotated: processor seconds per GB of float32", "s", 2.5, seconds, "", least=False)
        if theirs is not None:
            ratio = float(theirs["processor_s_per_gb"]) / seconds
            yield _row("the same, speed over that of Q4_K", "x", 10.0, ratio, str(theirs["by"]), least=True)


def _image(found: Mapping[str, list[Row]]) -> Iterator[dict[str, object]]:
    image = [r for r in found.get("digits-dit", []) if "network_sqnr_db" in r and "default" not in str(r.get("policy"))]
    if not image:
        return
    value, by = _best(image, "network_sqnr_db", max, lambda r: r["bits"] == 8)
    yield _row("digits-dit INT8: network SQNR", "dB", 48.0, value, by, least=True)
    for base, bits, limit, target in (
        ("NF4", 4, 5.0, 8.0), ("NF4", 4, 4.5, 7.0), ("rtn", 2, 3.0, 8.0), ("K-quant", 2, 3.0, 5.5),
    ):  # fmt: skip
        value, by = _best(
            image, "network_sqnr_db", max,
            lambda r, bits=bits, limit=limit: r["bits"] == bits and float(r["bits_per_weight"]) <= limit,
        )  # fmt: skip
        other = next((r for r in image if r["bits"] == bits and str(r["format"]).startswith(base)), None)
        gain = None if other is None or value is None else value - _mean(other["network_sqnr_db"])
        yield _row(f"digits-dit INT{bits} at {limit:g} bits: SQNR over {base}", "dB", target, gain, by, least=True)


def _text(found: Mapping[str, list[Row]]) -> Iterator[dict[str, object]]:
    for name in ("docs-mlm", "stdlib-mlm"):
        text = [r for r in found.get(name, []) if "kl" in r and "default" not in str(r.get("policy"))]
        base = next((r for r in text if r["format"] == "rtn g32"), None)
        if base is None:
            continue
        value, by = _best(text, "kl", min, lambda r: float(r["bits_per_weight"]) <= 3.0)
        ratio = None if value is None else value / _mean(base["kl"])
        yield _row(f"{name} INT2 at 3 bits: KL over that of min/max rounding", "", 0.25, ratio, by, least=False)


def _activations(found: Mapping[str, list[Row]]) -> Iterator[dict[str, object]]:
    by_label = {
        str(r["format"]): _mean(r["network_sqnr_db"]) for r in found.get("activations", []) if r["format"] != "W16A16"
    }
    if "A8 static, 4 time groups" not in by_label:
        return
    gain = by_label["A8 static, 4 time groups"] - by_label["A8 static, 1 time group"]
    yield _row("A8, 4 time groups over one static grid", "dB", 2.5, gain, "", least=True)
    plain = "W4A4 static, 4 time groups"
    transformed = {k: v for k, v in by_label.items() if k.startswith(f"{plain}, ")}
    best = max(transformed, key=lambda k: transformed[k])
    yield _row("W4A4, best transform over plain", "dB", 4.0, transformed[best] - by_label[plain], best, least=True)


def _gptq(found: Mapping[str, list[Row]]) -> Iterator[dict[str, object]]:
    """Judge by the clock, as a user waits; the processor seconds beside it tell a busy machine from a slow kernel."""
    for row in found.get("gptq", []):
        what = f"GPTQ of a {row['size']} x {row['size']} layer, INT{row['bits']} {row['format']}"
        work = f"{float(row['processor_s']):.3g} processor seconds"
        yield _row(f"{what}: seconds by the clock", "s", 20.0, float(row["seconds"]), work, least=False)
        yield _row(
            f"{what}: memory beyond the Hessian, in Hessians", "", 4.0, float(row["hessian_copies"]), "", least=False
        )
