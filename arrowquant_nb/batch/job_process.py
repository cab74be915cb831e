"""The process of one job: takes its request as JSON on stdin, executes the notebook, answers with JSON on stdout.

A process of its own, so that a job that dies or is killed takes no other with it. Run by `job_queue`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from arrowquant_nb.batch.notebook_run import run_notebook
from arrowquant_nb.errors import ArrowQuantError


def execute(request: dict[str, Any]) -> dict[str, str | None]:
    """Execute the notebook of a request; return {"error": message or None}."""
    try:
        run_notebook(
            Path(request["notebook"]), Path(request["output"]), request["parameters"], html=bool(request["html"])
        )
    except ArrowQuantError as error:
        return {"error": str(error)}
    return {"error": None}


if __name__ == "__main__":
    answer = execute(json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.exit(answer["error"] is not None)
