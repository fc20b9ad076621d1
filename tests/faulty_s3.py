"""A proxy in front of an S3 server that answers some requests as a bad day of a real object store would."""

import http.client
import re
import socket
import struct
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Kind = Literal["slow down", "internal error", "denied", "silence", "cut", "short", "long"]
_ERRORS = {
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "internal error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "denied": (403, "AccessDenied", "Access Denied"),
}
# Headers about the connection rather than the object.
_FRAMING = ("host", "connection", "content-length", "transfer-encoding", "expect", "date", "server")


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path?query" matches `pattern`.

    kind: an error status; "silence", no answer until the client gives up; "cut", the connection is reset after `after`
    bytes of the body (of the request, for a PUT); "short", a whole answer of the first `after` bytes; "long", a
    Content-Length of one byte more than there is. skip: requests that match and pass first.
    """

    pattern: str
    kind: Kind
    times: int = 1
    after: int = 0
    skip: int = 0


class FaultyS3:
    """The proxy. faults: what is still to happen; requests: what came, with the kind of fault it met or ""."""

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        proxy = self

        class Handler(_Handler):
            faulty = proxy

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.query = f"endpoint_override={self.address}&scheme=http&region=us-east-1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def plan(self, *faults: Fault) -> None:
        """Sets what is to happen from here on, and forgets what came so far."""
        with self._lock:
            self.faults, self.requests = list(faults), []

    def count(self, pattern: str) -> int:
        """How many requests came whose "METHOD /path?query" matches."""
        return sum(re.search(pattern, request) is not None for request, _ in self.requests)

    def met(self) -> list[str]:
        """The faults that were met, in order."""
        return [kind for _, kind in self.requests if kind]

    def choose(self, request: str) -> Fault | None:
        """What happens to a request."""
        with self._lock:
            for fault in self.faults:
                if not fault.times or not re.search(fault.pattern, request):
                    continue
                if fault.skip:
                    fault.skip -= 1
                else:
                    fault.times -= 1
                    self.requests.append((request, fault.kind))
                    return fault
            self.requests.append((request, ""))
            return None

    def close(self) -> None:
        self._closing.set()
        self.server.shutdown()
        self.server.server_close()

    def keep_silent(self) -> None:
        self._closing.wait(120)


class _Handler(BaseHTTPRequestHandler):
    faulty: FaultyS3
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self) -> None:
        fault = self.faulty.choose(f"{self.command} {self.path}")
        kind = fault.kind if fault else ""
        if fault and self.command == "PUT" and kind == "cut":
            self.rfile.read(fault.after)
            return self.reset()
        body = self.body()
        if kind == "silence":
            self.faulty.keep_silent()
            return self.reset()
        if kind in _ERRORS:
            return self.refuse(*_ERRORS[kind])
        upstream = http.client.HTTPConnection(*self.faulty.upstream, timeout=60)
        try:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in _FRAMING}
            upstream.request(self.command, self.path, body, kept)
            response = upstream.getresponse()
            content = response.read()
            headers = response.getheaders()
        finally:
            upstream.close()
        declared = len(content)
        if self.command == "HEAD":
            declared = int(response.getheader("Content-Length") or 0)
        if fault and kind == "short":
            content = content[: fault.after]
            declared = len(content)
        if kind == "long":
            declared += 1
        self.send_response(response.status)
        for name, value in headers:
            if name.lower() not in _FRAMING:
                self.send_header(name, value)
        if response.status != 204:
            self.send_header("Content-Length", str(declared))
        self.end_headers()
        self.wfile.write(content[: fault.after] if fault and kind == "cut" else content)
        if kind == "cut":
            self.wfile.flush()
            return self.reset()
        if kind == "long":
            self.close_connection = True
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def body(self) -> bytes:
        """The request's body. The AWS SDK sends it in chunks, without a Content-Length."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def refuse(self, status: int, code: str, message: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        content = b"" if self.command == "HEAD" else text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def reset(self) -> None:
        """Ends the connection with a reset rather than in order."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)
