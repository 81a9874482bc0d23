"""Lends a folder of plates to viewers in a browser: HTTP on loopback, with CORS and byte ranges.

    python docs/viewer/serve.py FOLDER [PORT]

Every program and web page on this machine can then read what is in FOLDER, until Ctrl-C; no other machine.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Lender(SimpleHTTPRequestHandler):
    """Files of one folder, whole or the piece that is asked for: a sharded array is read in pieces."""

    protocol_version = "HTTP/1.1"

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Headers", "Range")
        self.send_header("Access-Control-Expose-Headers", "Accept-Ranges, Content-Length, Content-Range")
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def do_OPTIONS(self) -> None:
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not path.is_file() or not any(asked.groups()):
            super().do_GET()
        else:
            self._send_piece(path, *asked.groups())

    def _send_piece(self, path: Path, first: str, last: str) -> None:
        size = path.stat().st_size
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last) + 1, size) if first and last else size
        if start >= end:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            self.wfile.write(file.read(end - start))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name http.server gives it)
        """Quiet: a viewer asks for hundreds of pieces."""


def lend(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of `folder` on 127.0.0.1, not yet serving; port 0: any free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Lender, directory=str(folder)))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python docs/viewer/serve.py FOLDER [PORT]; FOLDER is a plate, or a folder of plates")
    server = lend(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 8000)
    print(f"http://127.0.0.1:{server.server_port}/ lends {sys.argv[1]}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
