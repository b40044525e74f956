"""A real HTTP server on loopback that serves a folder, and does to each request what a test wants."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[[str, int], str | None]  # (file name, how many requests for it came before) -> what goes wrong


def no_fault(name: str, before: int) -> str | None:
    return None


class Server(ThreadingHTTPServer):
    """Faults: "500", "403", "404"; "reset" in the middle of the body; "short": it ends in the middle, cleanly;
    "stall": half of it and then nothing; "flip": a wrong bit; "whole": 200 with everything, whatever was asked for.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, root: Path, fault: Fault = no_fault):
        self.root, self.fault = root, fault
        self.asked: Counter[str] = Counter()  # requests by name
        self.sent: Counter[str] = Counter()  # bytes of bodies by name
        self.lock = threading.Lock()
        self.slow_s = 0.0  # for each 64 KB
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.lstrip("/")
        with self.server.lock:
            before = self.server.asked[name]
            self.server.asked[name] += 1
        fault = self.server.fault(name, before)  # which may take its time
        path = self.server.root / name
        if fault in ("500", "403") or fault == "404" or not path.is_file():
            self.send_response(int(fault) if fault in ("500", "403") else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        size, begin, end = len(data), 0, len(data)
        wanted = self.headers.get("Range")
        if wanted and fault != "whole":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1 if last else size, size)
        data = data[begin:end]
        if fault == "flip" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self.send_response(206 if wanted and fault != "whole" else 200)
        if wanted and fault != "whole":
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        cut = fault in ("reset", "short", "stall")
        if fault == "short":  # without a length, so that its end looks like the end
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self._send(name, data[: len(data) // 2] if cut else data)
        self.close_connection = cut
        if fault == "reset":  # RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault == "stall":
            time.sleep(3)

    def _send(self, name: str, data: bytes) -> None:
        for at in range(0, len(data), 1 << 16):
            piece = data[at : at + (1 << 16)]
            self.wfile.write(piece)
            with self.server.lock:
                self.server.sent[name] += len(piece)
            time.sleep(self.server.slow_s)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serve(root: str | os.PathLike[str], fault: Fault = no_fault) -> Iterator[Server]:
    """Serve a folder for a while."""
    server = Server(Path(root), fault)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
