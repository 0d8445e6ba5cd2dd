"""Headless Chromium driven over its DevTools pipe, and a file server on 127.0.0.1 that knows byte ranges."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# WebGL 2 in software, and no other host than this one
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
]
ONLY_HERE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".wasm": "application/wasm",
    ".json": "application/json",
}


class Browser:
    """One page of a headless Chromium; messages are JSON ended by a zero byte, on file descriptors 3 and 4."""

    def __init__(self, program: str, profile: Path, size: tuple[int, int]) -> None:
        """Start ``program`` with its profile in an empty folder and a page of (height, width) pixels."""
        to_read, self._to_browser = self._pipe()
        self._from_browser, to_write = self._pipe()
        redirect = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash"]
        command = [*redirect, program, *FLAGS, ONLY_HERE, f"--user-data-dir={profile}", "about:blank"]
        with (profile / "log").open("wb") as log:
            self._process = subprocess.Popen(command, pass_fds=(to_read, to_write), stdout=log, stderr=log)
        os.close(to_read)
        os.close(to_write)
        self._count, self._rest, self._session, self.said = 0, b"", "", []  # type: ignore[var-annotated]
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Runtime.enable")
        self.ask("Log.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=size[1], height=size[0], deviceScaleFactor=1, mobile=False)

    @staticmethod
    def _pipe() -> tuple[int, int]:
        """A pipe whose ends lie above 9, so that moving them to 3 and 4 overwrites neither."""
        ends = os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
        for end in ends:
            os.close(end)
        return high[0], high[1]

    def ask(self, method: str, timeout_s: float = 30, **params: Any) -> dict[str, Any]:
        """The result of a DevTools method."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        for reply in self._messages(time.monotonic() + timeout_s):
            if reply.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.said.append(json.dumps(reply["params"])[:2500])
            if reply.get("id") == self._count:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return dict(reply["result"])
        raise TimeoutError(f"Chromium did not answer {method} within {timeout_s} s")

    def _messages(self, until: float) -> Iterator[dict[str, Any]]:
        while (left := until - time.monotonic()) > 0:
            while b"\0" in self._rest:
                one, self._rest = self._rest.split(b"\0", 1)
                yield json.loads(one)
            if select.select([self._from_browser], [], [], left)[0]:
                piece = os.read(self._from_browser, 1 << 16)
                if not piece:
                    raise RuntimeError("Chromium ended")
                self._rest += piece

    def open(self, url: str) -> None:
        """Go to a page, by way of an empty one: a URL that differs in its fragment alone loads nothing."""
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, None where it throws."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self) -> Any:
        """The page as (y, x, rgb) uint8."""
        png = base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)

    def close(self) -> None:
        """End the browser, in order if it still answers."""
        try:
            self._session = ""
            self.ask("Browser.close", timeout_s=5)
            self._process.wait(10)
        except (RuntimeError, OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._to_browser)
        os.close(self._from_browser)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and end of a Range header (``bytes=a-b``, ``bytes=a-``, ``bytes=-n``); None for the whole."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if not found or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


@contextmanager
def served(folders: dict[str, Path], pages: dict[str, str] | None = None) -> Iterator[str]:
    """Serve folders under names, and pages given as text, on 127.0.0.1; yields the URL."""
    texts = {} if pages is None else pages

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def content(self) -> bytes | None:
            path = self.path.partition("?")[0].lstrip("/")
            if path in texts:
                return texts[path].encode()
            files = (folder / path[len(name) :].lstrip("/") for name, folder in folders.items() if path.startswith(f"{name}/"))
            return next((file.read_bytes() for file in files if file.is_file()), None)

        def do_GET(self) -> None:
            content = self.content()
            if content is None:
                self.answer(404, b"", {})
                return
            part = byte_range(self.headers.get("Range"), len(content))
            if part is None:
                self.answer(200, content, {})
            else:
                about = {"Content-Range": f"bytes {part[0]}-{part[1] - 1}/{len(content)}"}
                self.answer(206, content[slice(*part)], about)

        do_HEAD = do_GET  # noqa: N815

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            suffix = Path(self.path.partition("?")[0]).suffix
            about = {"Content-Type": TYPES.get(suffix, "application/octet-stream"), "Content-Length": str(len(body))}
            for name, value in {**about, **headers, "Accept-Ranges": "bytes", "Cache-Control": "no-store"}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: the test says what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
