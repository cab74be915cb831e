"""Where settings are written down: YAML files, environment variables, text on a command line.

Turns each of them into plain Python values and says, for every value, where it stood, so that an error can name the
line or the variable. Nothing here knows which settings exist or what they mean: field names and kinds come in as
arguments. Hostile files (huge, deeply nested, aliased, tagged) are refused in bounded time and memory.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import yaml

from arrowquant_nb.errors import ConfigurationError

__all__ = ["ENVIRONMENT_PREFIX", "did_you_mean", "from_environment", "from_text", "read_yaml", "shown", "yaml_text"]

ENVIRONMENT_PREFIX: Final = "ARROW_QUANT_"
# Twenty-odd settings fit in a page; the caps only bound what a hostile file can cost.
MAX_YAML_NBYTES: Final = 1 << 20
MAX_YAML_DEPTH: Final = 32
MAX_YAML_NODES: Final = 50_000

# YAML 1.2 core scalars. The 1.1 rules would read 010 as octal, 1:30 as sexagesimal and "no" as false.
_NULL: Final = re.compile(r"~|null|Null|NULL|")
_TRUE: Final = re.compile(r"true|True|TRUE")
_FALSE: Final = re.compile(r"false|False|FALSE")
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,30}")
_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,4})?")
_WORDS_FOR_FLAGS: Final = {
    "true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False,
}  # fmt: skip


def shown(value: object) -> str:
    """Return `repr(value)` cut to 80 characters, for messages; never raises.

    Examples
    --------
    >>> shown("TEXT")
    "'TEXT'"
    """
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a caller's object with a broken repr must not hide the real message
        text = f"<{type(value).__name__}: {type(error).__name__} in repr>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def did_you_mean(word: object, valid: Iterable[str]) -> str:
    """Return ' Did you mean "..."?' for the nearest valid word, or an empty string.

    Examples
    --------
    >>> did_you_mean("bitwidth", ["bit_width", "group_size"])
    ' Did you mean "bit_width"?'
    >>> did_you_mean("TEXT ", ["text", "code"])
    ' Did you mean "text"?'
    """
    # difflib is quadratic in the length; no setting has a name of more than 60 letters.
    nearest = difflib.get_close_matches(str(word)[:60].strip().lower(), list(valid), n=1, cutoff=0.6)
    return f' Did you mean "{nearest[0]}"?' if nearest else ""


def from_text(kind: str, text: str) -> object:
    """Turn text of an environment variable or option into the value it spells.

    Parameters
    ----------
    kind : str
        "integer", "number", "flag", "word" (fixed words or None), "words" (JSON list) or "table" (JSON object).
    text : str
        As typed. "none" and "null" are None, except where a list or table is expected.

    Returns
    -------
    object
        The value, or the text itself when it spells none: the field's own check then names it.

    Examples
    --------
    >>> from_text("integer", "4"), from_text("flag", "no"), from_text("table", '{"head": 16}')
    (4, False, {'head': 16})
    """
    if kind in ("words", "table"):
        try:
            return _parse_json(text)
        except (ValueError, RecursionError):
            return text
    if text.strip().lower() in ("none", "null"):
        return None
    if kind == "flag":
        return _WORDS_FOR_FLAGS.get(text.strip().lower(), text)
    if kind == "word":
        return text
    return _plain_scalar(text.strip()) if text.strip() else text


def from_environment(environment: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, object]:
    """Collect the settings among environment variables.

    Parameters
    ----------
    environment : Mapping
        For example `os.environ`. Only names that start with `ARROW_QUANT_` are looked at.
    kinds : Mapping
        Field name -> kind, see `from_text`.

    Raises
    ------
    ConfigurationError
        For an `ARROW_QUANT_` variable that names no field.
    """
    values: dict[str, object] = {}
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        field = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if field not in kinds or variable != ENVIRONMENT_PREFIX + field.upper():
            variables = {name: ENVIRONMENT_PREFIX + name.upper() for name in kinds}
            nearest = difflib.get_close_matches(field[:60], list(variables), n=1, cutoff=0.6)
            hint = f' Did you mean "{variables[nearest[0]]}"?' if nearest else ""
            raise ConfigurationError(f"environment variable {variable} names no setting; unset it.{hint}")
        values[field] = from_text(kinds[field], environment[variable])
    return values


def read_yaml(path: Path) -> tuple[dict[str, object], dict[str, int]]:
    """Read a settings file: one mapping of names to scalars, lists and mappings.

    Parameters
    ----------
    path : Path
        At most 1 MiB of UTF-8, nested at most 32 deep, without aliases, anchors, tags or duplicate keys.

    Returns
    -------
    tuple
        The values, and for each top-level name the line (from 1) on which it stands.

    Raises
    ------
    ConfigurationError
        Names the file and, where there is one, the line.
    """
    loader = _SettingsLoader(_read_text(path))
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise _refused(node.start_mark, "a settings file is a mapping, one `field: value` a line")
        values = {_key(key): _value(value) for key, value in node.value}
        lines = {_key(key): key.start_mark.line + 1 for key, _ in node.value}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigurationError(f"{where}: {error.problem or error.context or 'not YAML'}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {shown(str(error))}") from error
    return values, lines


def yaml_text(values: Mapping[str, object]) -> str:
    """Return YAML that `read_yaml` turns back into equal values, in the given order."""
    return yaml.dump(dict(values), Dumper=_SettingsDumper, sort_keys=False, allow_unicode=False, width=120)


class _SettingsDumper(yaml.SafeDumper):
    """Quotes words such as 1e5, which YAML 1.1 takes for text and `read_yaml` for a number."""


_SettingsDumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


class _SettingsLoader(yaml.BaseLoader):
    """PyYAML's parser without tags, anchors, aliases, duplicate keys or deep nesting; constructs nothing."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._n_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(event.start_mark, "anchors (&) and aliases (*) are not read; write the value out")
        if getattr(event, "tag", None):
            raise _refused(event.start_mark, f"tags are not read; remove {shown(event.tag)}")
        if self._depth >= MAX_YAML_DEPTH:
            raise _refused(event.start_mark, f"nested more than {MAX_YAML_DEPTH} deep")
        self._n_nodes += 1
        if self._n_nodes > MAX_YAML_NODES:
            raise _refused(event.start_mark, f"more than {MAX_YAML_NODES} words, so not a settings file")
        self._depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        if isinstance(node, yaml.MappingNode):
            _refuse_duplicate_keys(node)
        return node


def _refused(mark: object, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)  # type: ignore[arg-type]


def _refuse_duplicate_keys(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        name = _key(key)
        line = key.start_mark.line + 1
        if name in seen:
            raise _refused(key.start_mark, f"{shown(name)} is already set on line {seen[name]}; keep one of the two")
        seen[name] = line


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _refused(node.start_mark, "a key must be a word, not a list or mapping")
    return str(node.value)


def _value(node: yaml.Node) -> object:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {_key(key): _value(value) for key, value in node.value}
    text = str(node.value)
    return text if getattr(node, "style", None) else _plain_scalar(text)


def _plain_scalar(text: str) -> object:
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return bool(_TRUE.fullmatch(text))
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def _parse_json(text: str) -> object:
    def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("duplicate key")
        return dict(pairs)

    value: object = json.loads(text, object_pairs_hook=distinct)
    return value


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            raise ConfigurationError(f"{path}: there is no settings file here; check the path")
        with path.open("rb") as file:
            data = file.read(MAX_YAML_NBYTES + 1)
        if len(data) > MAX_YAML_NBYTES:
            raise ConfigurationError(f"{path}: larger than 1 MiB, so not a settings file")
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8 text") from error
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from error
    unprintable = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if unprintable:
        line = text.count("\n", 0, unprintable.start()) + 1
        raise ConfigurationError(f"{path}, line {line}: contains the control character {unprintable.group()!r}")
    return text
