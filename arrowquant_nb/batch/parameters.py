"""What can be set in a notebook: the typed, commented assignments of the cell tagged `parameters`.

Reads the cell as text, executes nothing. Stricter than papermill, which lets unknown names and wrong types through.
"""

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from arrowquant_nb.config.sources import did_you_mean, from_text, shown
from arrowquant_nb.errors import ConfigurationError, ModelNotFoundError
from arrowquant_nb.tables import text_table

__all__ = ["Parameter", "check_parameters", "parameter_table", "parse_parameters", "read_notebook", "read_parameters"]

_KINDS: Final = {"int": "integer", "float": "number", "bool": "flag", "list": "words", "dict": "table"}
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "list": (list, tuple), "dict": (dict,),
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's `parameters` cell."""

    name: str
    types: tuple[str, ...]
    """Accepted types by name, such as ("int", "none")."""
    default: object
    help: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self) | {"types": list(self.types)}


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """Read the typed assignments of the cell tagged `parameters`; nothing is executed.

    Raises
    ------
    ModelNotFoundError, ConfigurationError
        No notebook there, not a notebook, no such cell, or a line in it that is not `name: type = literal  # help`.
    """
    for cell in read_notebook(notebook)["cells"]:
        if cell.get("cell_type") == "code" and "parameters" in (cell["metadata"].get("tags") or ()):
            return _parameters_of(cell["source"], notebook)
    raise ConfigurationError(f"{notebook}: no cell is tagged `parameters`, so nothing can be set in it")


def parse_parameters(notebook: Path, given: Iterable[tuple[str, str]]) -> dict[str, object]:
    """Turn `-p NAME VALUE` texts into values of the types the notebook declares.

    Raises
    ------
    ConfigurationError
        Names the parameter, its value and what the notebook takes; for an unknown one the nearest name.
    """
    known = read_parameters(notebook)
    values: dict[str, object] = {}
    for name, text in given:
        if name in values:
            raise ConfigurationError(f"parameter {name!r} is given twice; keep one of the two")
        values[name] = _parsed(_named(known, name, notebook), text)
    return values


def parameter_table(parameters: Mapping[str, Parameter]) -> str:
    """Return one line per parameter: name, type, default, help."""
    rows = [[p.name, " or ".join(p.types), repr(p.default), p.help] for p in parameters.values()]
    return text_table(("parameter", "type", "default", "meaning"), rows)


def check_parameters(notebook: Path, values: Mapping[str, object]) -> dict[str, Parameter]:
    """Refuse unknown names and wrong types; return what the notebook declares.

    Raises
    ------
    ConfigurationError
        As `parse_parameters`.
    """
    known = read_parameters(notebook)
    for name, value in values.items():
        _check(_named(known, name, notebook), value)
    return known


def read_notebook(notebook: Path) -> dict[str, Any]:
    """Return a notebook's JSON with every cell's source as one string.

    Raises
    ------
    ModelNotFoundError, ConfigurationError
        Nothing there, or not a notebook.
    """
    try:
        document = json.loads(notebook.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{notebook}: there is no notebook here") from error
    except OSError as error:
        raise ConfigurationError(f"{notebook}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{notebook}: not a notebook: {shown(str(error))}") from error
    if not isinstance(document, dict) or not isinstance(document.get("cells"), list):
        raise ConfigurationError(f"{notebook}: not a notebook: it has no list of cells")
    for number, cell in enumerate(document["cells"]):
        if not isinstance(cell, dict) or not isinstance(cell.setdefault("metadata", {}), dict):
            raise ConfigurationError(f"{notebook}: not a notebook: cell {number} is not a cell")
        source = cell.get("source", "")
        cell["source"] = "".join(map(str, source)) if isinstance(source, list) else str(source)
    return document


def _parameters_of(source: str, notebook: Path) -> dict[str, Parameter]:
    lines = source.splitlines()
    found: dict[str, Parameter] = {}
    try:
        for statement in ast.parse(source).body:
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                raise _unreadable(notebook, f"line {statement.lineno} is not `name: type = literal  # help`")
            name = statement.target.id
            default = ast.literal_eval(statement.value or ast.Constant(None))
            comment = lines[(statement.end_lineno or 1) - 1].encode()[statement.end_col_offset or 0 :].decode()
            found[name] = Parameter(name, _type_names(statement.annotation), default, comment.strip().lstrip("# "))
    except ConfigurationError:
        raise
    except (SyntaxError, ValueError) as error:
        raise _unreadable(notebook, str(error)) from error
    return found


def _unreadable(notebook: Path, why: str) -> ConfigurationError:
    return ConfigurationError(f"{notebook}: the parameters cell cannot be read: {why}")


def _type_names(annotation: ast.expr) -> tuple[str, ...]:
    """Return the accepted types of `int`, `int | None` or `Optional[int]`."""
    names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name) and node.id != "Optional"]
    optional = "Optional" in ast.unparse(annotation) or "None" in ast.unparse(annotation)
    unknown = [name for name in names if name not in _TYPES]
    if unknown or not names:
        raise ValueError(f"type {ast.unparse(annotation)!r} is not one of {', '.join(_TYPES)}")
    return (*names, "none") if optional else tuple(names)


def _named(known: Mapping[str, Parameter], name: str, notebook: Path) -> Parameter:
    if name not in known:
        hint = did_you_mean(name, known) or f" It has: {', '.join(known)}."
        raise ConfigurationError(f"{notebook.name} has no parameter {name!r}.{hint}")
    return known[name]


def _parsed(parameter: Parameter, text: str) -> object:
    if "none" in parameter.types and text.strip().lower() in ("none", "null"):
        return None
    value: object = text
    for name in parameter.types:
        if name in _KINDS:
            value = from_text(_KINDS[name], text)
    _check(parameter, value)
    return value


def _check(parameter: Parameter, value: object) -> None:
    for name in parameter.types:
        if value is None and name == "none":
            return
        if isinstance(value, _TYPES.get(name, ())) and (name == "bool") == isinstance(value, bool):
            return
    raise ConfigurationError(
        f"parameter {parameter.name} = {shown(value)} is refused; it must be {' or '.join(parameter.types)} "
        f"({parameter.help})"
    )
