"""The same run in other words: Python for a script, a papermill command for tonight."""

import json
import shlex
from pathlib import Path
from typing import Final

from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.config.command import changed_settings
from arrowquant_nb.runs.model_choice import ModelChoice

__all__ = ["papermill_command", "python_code"]

_PROFILE: Final = "deployment_profile"


def python_code(choice: ModelChoice, output: str, config: DiffusionQuantConfig) -> str:
    """Return Python that runs the same; it gives an equal config.

    Examples
    --------
    >>> print(python_code(ModelChoice("digits-dit"), "out", DiffusionQuantConfig(seed=3)))
    import arrowquant_nb as aq
    <BLANKLINE>
    config = aq.DiffusionQuantConfig.from_profile("local", seed=3)
    result = aq.ArrowQuantV2(config).quantize_diffusion_model("digits-dit", "out")
    """
    changed = changed_settings(config)
    profile = changed.pop(_PROFILE)
    arguments = "".join(f", {name}={value!r}" for name, value in changed.items())
    parts = "".join(f", {name}={json.dumps(value)}" for name, value in choice.parts.items() if value is not None)
    return (
        "import arrowquant_nb as aq\n\n"
        f"config = aq.DiffusionQuantConfig.from_profile({json.dumps(profile)}{arguments})\n"
        f"result = aq.ArrowQuantV2(config).quantize_diffusion_model("
        f"{json.dumps(str(choice.model))}, {json.dumps(output)}{parts})"
    )


def papermill_command(choice: ModelChoice, output: str, settings_file: str) -> str:
    """Return the command that runs the parameterized notebook with a saved settings file.

    Parameters
    ----------
    settings_file : YAML that holds the settings, see `DiffusionQuantConfig.to_yaml`.
    """
    parameters = {"model": choice.model, "output": output, "config_yaml": settings_file, **choice.parts}
    given = " ".join(f"-p {name} {shlex.quote(str(value))}" for name, value in parameters.items() if value is not None)
    notebook = f"{Path(output).name or 'run'}.ipynb"
    return f"arrowquant run {shlex.quote(notebook)} {given}"
