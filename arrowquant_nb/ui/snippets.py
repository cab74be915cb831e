"""The same run in other words: Python for a script, a papermill command for tonight."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.runs.record import changed_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["papermill_command", "python_code"]

_PROFILE: Final = "deployment_profile"


def python_code(model: str, output: str, config: DiffusionQuantConfig) -> str:
    """Return Python that runs the same; it gives an equal config.

    Examples
    --------
    >>> print(python_code("digits-dit", "out", DiffusionQuantConfig(seed=3)))
    import arrowquant_nb as aq
    <BLANKLINE>
    config = aq.DiffusionQuantConfig.from_profile("local", seed=3)
    result = aq.ArrowQuantV2(config).quantize_diffusion_model("digits-dit", "out")
    """
    changed = changed_settings(config)
    profile = changed.pop(_PROFILE)
    arguments = "".join(f", {name}={value!r}" for name, value in changed.items())
    return (
        "import arrowquant_nb as aq\n\n"
        f"config = aq.DiffusionQuantConfig.from_profile({json.dumps(profile)}{arguments})\n"
        f"result = aq.ArrowQuantV2(config).quantize_diffusion_model({json.dumps(model)}, {json.dumps(output)})"
    )


def papermill_command(model: str, output: str, settings_file: str) -> str:
    """Return the command that runs the parameterized notebook with a saved settings file.

    Parameters
    ----------
    settings_file : YAML that holds the settings, see `DiffusionQuantConfig.to_yaml`.
    """
    parameters: Mapping[str, str] = {"model": model, "output": output, "config_yaml": settings_file}
    given = " ".join(f"-p {name} {shlex.quote(value)}" for name, value in parameters.items())
    notebook = f"{Path(output).name or 'run'}.ipynb"
    return f"arrowquant run {shlex.quote(notebook)} {given}"
