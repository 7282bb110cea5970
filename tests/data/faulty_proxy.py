"""A TCP proxy in front of a storage server that now and then answers 500, cuts a connection in mid-body, or deletes."""

import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer

CUT_AFTER_BYTES = 20_000


@contextmanager
def faulty_s3(bucket: str) -> Iterator["FaultyProxy"]:
    """A proxy in front of an S3 server with an empty bucket, to which the environment sends this process and what it
    starts."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    proxy = FaultyProxy(server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        boto3.client("s3").create_bucket(Bucket=bucket)
        yield proxy
    proxy.shutdown()
    server.stop()


class FaultyProxy(socketserver.ThreadingTCPServer):
    """Passes requests on to `upstream`; the next len(faults) requests get these faults: "500", "cut", "refuse" or
    "delete", which deletes what is asked for and then asks."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, upstream: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.faults: list[str] = []
        self.seen: Counter[str] = Counter()
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self) -> str:
        with self.lock:
            fault = self.faults.pop(0) if self.faults else "none"
            self.seen[fault] += 1
            return fault


class _Handler(socketserver.BaseRequestHandler):
    server: FaultyProxy

    def handle(self) -> None:
        """One request a connection: simple, and every retry is seen."""
        request = self._request()
        if not request:
            return
        fault = self.server.next_fault()
        if fault == "refuse":
            return
        if fault == "500":
            self.request.sendall(
                b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return
        if fault == "delete":
            path = request.split(b" ", 2)[1]
            with socket.create_connection(self.server.upstream) as upstream:
                upstream.sendall(b"DELETE " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                while upstream.recv(65536):
                    pass
        num_left = CUT_AFTER_BYTES if fault == "cut" else None
        with socket.create_connection(self.server.upstream) as upstream:
            upstream.sendall(request)
            while data := upstream.recv(65536):
                if num_left is not None:
                    data = data[:num_left]
                    num_left -= len(data)
                self.request.sendall(data)
                if num_left == 0:
                    return

    def _request(self) -> bytes:
        """The whole request, told to close its connection when answered."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.request.recv(65536)
            if not more:
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
        length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")), 0)
        if b"expect: 100-continue" in head.lower():
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        is_chunked = b"transfer-encoding: chunked" in head.lower()
        while len(body) < length or (is_chunked and not _has_last_chunk(body)):
            more = self.request.recv(65536)
            if not more:
                return b""
            body += more
        return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body


def _has_last_chunk(body: bytes) -> bool:
    """Whether a chunked body is whole. S3 clients put a body that looks chunked into the chunks: sizes must be read."""
    start = 0
    while (end := body.find(b"\r\n", start)) >= 0:
        size = int(body[start:end].split(b";")[0], 16)
        if size == 0:
            return body.endswith(b"\r\n\r\n")
        start = end + 2 + size + 2
    return False
