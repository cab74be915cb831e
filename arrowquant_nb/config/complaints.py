"""What is wrong with settings, in words: pydantic's complaints with the source of each value and what is allowed."""

import re
from collections.abc import Mapping

from pydantic import ValidationError

from arrowquant_nb.config.sources import did_you_mean, shown

__all__ = ["complaints"]


def complaints(
    error: ValidationError, origin: Mapping[str, str], fields: Mapping[str, Mapping[str, object]]
) -> list[str]:
    """Say for every refused value where it stood, what it was and what is allowed.

    Parameters
    ----------
    error : what pydantic refused.
    origin : field -> where its value stood.
    fields : field -> its facts, see `field_facts`.
    """
    said: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        field = str(detail["loc"][0])
        facts = fields[field]
        entry = ""
        if facts["kind"] in ("words", "table"):
            entry = "".join(f"[{shown(part)}]" for part in detail["loc"][1:] if part != "[key]")
        reason = str(detail.get("ctx", {}).get("error", ""))
        why = f" ({reason})" if reason.startswith("not a regular expression") else ""
        hint = did_you_mean(detail["input"], re.findall(r"\w+", str(facts["range"]))) if facts["kind"] == "word" else ""
        said.setdefault(
            field,
            f"{origin[field]}: {field}{entry} = {shown(detail['input'])} is refused{why}; "
            f"it must be {facts['range']}.{hint}",
        )
    return list(said.values())
