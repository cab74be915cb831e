"""The JSON form of frozen dataclasses: a dictionary that reads back to an equal value.

JSON has no infinity and no NaN; they are written as the strings "inf", "-inf" and "nan".
"""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, fields
from typing import Any, ClassVar, Self


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(v) for v in value]
    return value


def _from_json(value: Any, of_floats: bool) -> Any:
    """Undo `_to_json`; only a field of floats holds the words for infinity, a tensor may be named "inf"."""
    if of_floats and isinstance(value, str) and value in ("inf", "-inf", "nan"):
        return float(value)
    if isinstance(value, list):
        return tuple(_from_json(v, of_floats) for v in value)
    return value


class JsonForm:
    """`to_dict` and `from_dict` for frozen dataclasses whose nested classes are named in `_nested`."""

    # Properties that `to_dict` adds for whoever reads the JSON; `from_dict` leaves them out.
    _headline: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary that `from_dict` reads back to an equal value."""
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        result: dict[str, Any] = _to_json({name: getattr(self, name) for name in self._headline} | values)
        return result

    def to_record(self) -> dict[str, Any]:
        """Return what `from_dict` needs and no more: fields at their default are left out, for logs that repeat it."""
        found: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if value == default:
                continue
            if isinstance(value, tuple) and value and isinstance(value[0], JsonForm):
                found[item.name] = [part.to_record() for part in value]
            else:
                found[item.name] = value.to_record() if isinstance(value, JsonForm) else _to_json(value)
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild the value from `to_dict`."""
        nested = cls._nested()
        values = {}
        for item in fields(cls):  # type: ignore[arg-type]
            if item.name not in data:
                continue
            value = data[item.name]
            kind = nested.get(item.name)
            if kind is not None and value is not None:
                values[item.name] = (
                    tuple(kind.from_dict(v) for v in value)
                    if isinstance(value, (list, tuple))
                    else kind.from_dict(value)
                )
            else:
                values[item.name] = value if isinstance(value, dict) else _from_json(value, "float" in str(item.type))
        return cls(**values)
