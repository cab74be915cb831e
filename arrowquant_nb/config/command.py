"""Settings as a command line that gives them again."""

import shlex

from arrowquant_nb.config.settings import DiffusionQuantConfig

__all__ = ["command_line"]


def command_line(model: str, config: DiffusionQuantConfig) -> str:
    """Return the `arrowquant quantize` command of a config: its profile, and every field that differs from it."""
    base = DiffusionQuantConfig.from_profile(str(config.deployment_profile)).to_dict()
    words = ["arrowquant", "quantize", model, "OUTPUT", "--profile", str(config.deployment_profile)]
    for name, value in config.to_dict().items():
        if value == base[name] or name in ("deployment_profile", "num_threads"):
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            for key, item in value.items():
                words += [option, f"{key}={item}"]
        elif isinstance(value, list):
            for item in value:
                words += [option, str(item)]
        else:
            words += [option, str(value)]
    return " ".join(shlex.quote(w) for w in words)
