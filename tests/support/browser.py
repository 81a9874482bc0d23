"""A page in a real browser without network, and what a script in it finds there."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def browser() -> str:
    """The path of Chromium; the test is skipped where there is none, and fails where it must be there."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None and os.environ.get("HPC_ISL_NEEDS_BROWSER") == "1":
        pytest.fail("a browser is needed here, and chromium is missing")
    if found is None:
        pytest.skip("needs a browser: apt install chromium")
    return found


def seen(page: Path, probe: str, folder: Path, width: int) -> Any:
    """What `probe`, an expression of JavaScript at the end of the page, gives; the console stays empty."""
    copy = folder / "page.html"
    script = f"<script>document.title = JSON.stringify({probe});</script></body>"
    copy.write_text(page.read_text().replace("</body>", script))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1200", "--dump-dom"]
    options += ["--disable-dev-shm-usage", "--enable-logging=stderr"]
    done = subprocess.run(
        [browser(), *options, copy.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    return json.loads(html.unescape(title[1]))
