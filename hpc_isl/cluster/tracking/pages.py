"""MLflow's server as `ui` starts it: its pages open as those of model training; a plugin that MLflow loads.

Until "Model training" is chosen in a browser, MLflow's pages speak of agents and their traces, whatever the
kind of an experiment. Here that choice is made at the first visit; a choice of the user is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Response, current_app, request

CHOICE = (
    "<script>try { localStorage.getItem('mlflow.workflowType_v1') ?? "
    "localStorage.setItem('mlflow.workflowType_v1', '\"machine_learning\"') } catch {}</script>"
)


def create_app() -> Any:
    """Returns what uvicorn serves: MLflow's own application, whose pages Flask answers."""
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import app

    pages.before_request(_first_page)
    return app


def _first_page() -> Response | None:
    """Returns MLflow's only HTML page with the choice before its scripts; None: another address."""
    index = Path(current_app.static_folder or "") / "index.html"
    if request.path != "/" or not index.is_file():
        return None
    return Response(index.read_text().replace("<head>", f"<head>{CHOICE}", 1), mimetype="text/html")
