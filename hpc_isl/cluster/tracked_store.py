"""Where MLflow keeps runs: a server that answers, or a database that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import socket
import urllib.parse
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hpc_isl.files import only_writer

ANSWER_S = 3.0
SQLITE = "sqlite:///"


class Unreachable(RuntimeError):
    """The tracking server does not answer; the run folder keeps everything until it does."""


def check(uri: str) -> None:
    """A server that is not there is found out in seconds, before MLflow is imported and retries."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.scheme in urllib.request.getproxies():
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), ANSWER_S).close()
    except OSError as error:
        raise Unreachable(f"{uri} does not answer ({error})") from None


def one_at_a_time(root: Path) -> AbstractContextManager[bool]:
    """Eight that create one database or experiment together fail."""
    return only_writer(root / ".mlflow.lock", wait_s=120)


def client(mlflow: Any, uri: str, root: Path) -> Any:
    """MLflow's own client; a database whose making was ended half-way would be refused for ever."""
    with one_at_a_time(root) as mine:
        if not mine:
            raise Unreachable(f"{uri} is being made by another process just now")
        path = Path(uri.removeprefix(SQLITE))
        if uri.startswith(SQLITE) and not path.exists():
            _make_whole(mlflow, path)
        return mlflow.MlflowClient(tracking_uri=uri)


def _make_whole(mlflow: Any, path: Path) -> None:
    folder = path.with_name(f".{path.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mlflow.MlflowClient(tracking_uri=f"{SQLITE}{folder}/{path.name}")
    os.rename(folder / path.name, path)
    shutil.rmtree(folder)
