"""One deadline bounds a request, whatever a hostile server on loopback does with it, and so do sizes."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from titer.models.http import LARGEST, Reply, post

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
Serve = Callable[[socket.socket, threading.Event], None]


@contextmanager
def hostile(serve: Serve) -> Iterator[str]:
    """A server that reads a request and then does what `serve` does, for every connection."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            serve(connection, over)

    def listen() -> None:
        with suppress(OSError):
            while True:
                connection = listener.accept()[0]
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        over.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def dripping(before: bytes, drop: bytes) -> Serve:
    """Says `before`, then `drop` every 20 ms without end."""

    def serve(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(before)
        while not over.wait(0.02):
            connection.sendall(drop)

    return serve


def saying(text: bytes) -> Serve:
    return lambda connection, over: connection.sendall(text)


def flooding(before: bytes, piece: bytes) -> Serve:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(before)
        while not over.is_set():
            connection.sendall(piece)

    return serve


def sized(body: bytes, *headers: bytes) -> bytes:
    length = f"Content-Length: {len(body)}\r\n".encode()
    return OK + length + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


DRIPS = {
    "nothing": dripping(b"", b""),
    "the status line": dripping(b"HTTP/1.1", b" "),
    "a header": dripping(OK + b"X: ", b"x"),
    "headers": dripping(OK, b"X: x\r\n"),
    "100 Continue": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers of a 100 Continue": dripping(b"HTTP/1.1 100 Continue\r\n", b"X: x\r\n"),
    "a body of a length": dripping(OK + b"Content-Length: 9999\r\n\r\n", b" "),
    "a body to the end": dripping(OK + b"\r\n", b" "),
    "chunks": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "the size of a chunk": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X: x\r\n"),
    "an error's headers": dripping(b"HTTP/1.1 503 Busy\r\n", b"X: x\r\n"),
}


@pytest.mark.parametrize("what", DRIPS)
def test_a_server_that_drips_is_left_at_the_deadline(what: str) -> None:
    with hostile(DRIPS[what]) as url:
        started = time.monotonic()
        reply = post(url, {}, "", 0.25)
        assert time.monotonic() - started < 0.6
    assert reply == Reply(0)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_takes_no_connection_or_no_handshake_is_left(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        started = time.monotonic()
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/v1"
        assert post(url, {}, "", 0.2) == Reply(0)
        assert time.monotonic() - started < 0.6


def test_a_handshake_that_drips_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    record = b"\x16\x03\x03\x40\x00"  # the head of a TLS record of 16 KiB that is never whole
    with hostile(dripping(record, b"\x02")) as url:
        started = time.monotonic()
        assert post(url.replace("http", "https"), {}, "", 0.25) == Reply(0)
        assert time.monotonic() - started < 0.6


def test_a_name_that_is_looked_up_for_ever_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        over.wait(5)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    started = time.monotonic()
    assert post("http://example.invalid/v1", {}, "", 0.1) == Reply(0)
    assert time.monotonic() - started < 0.6
    over.set()


FLOODS = {
    "one header": flooding(OK + b"X: ", b"x" * 65536),
    "many headers": flooding(OK, b"X: x\r\n" * 1000),
    "a body": flooding(OK + b"\r\n", b" " * 65536),
    "chunks": flooding(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"8000\r\n" + b" " * 0x8000 + b"\r\n"),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_server_that_floods_is_left_long_before_the_deadline(what: str) -> None:
    with hostile(FLOODS[what]) as url:
        started = time.monotonic()
        assert post(url, {}, "", 20.0) == Reply(0)
        assert time.monotonic() - started < 5


def test_a_packed_reply_is_not_unpacked() -> None:
    bomb = gzip.compress(b'{"a": "' + b"0" * 50_000_000 + b'"}')
    assert len(bomb) < LARGEST
    with hostile(saying(sized(bomb, b"Content-Encoding: gzip"))) as url:
        assert post(url, {}, "", 5.0) == Reply(200)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_reaches_no_other_host(status: int) -> None:
    reached = threading.Event()
    with hostile(lambda connection, over: reached.set()) as elsewhere:
        head = f"HTTP/1.1 {status} Moved\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"
        with hostile(saying(head.encode())) as url:
            assert post(url, {}, "not-a-key-81", 5.0).status == status
    assert not reached.is_set()


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\x00\xff\xfe", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 99999 x\r\n\r\n", b"HTTP/9 200\r\n\r\n",
        b"SSH-2.0-x\r\n",
        OK + b"Content-Length: -5\r\n\r\n{}", OK + b"Content-Length: many\r\n\r\n[]",
        OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", sized(b"{}")[:-1], OK + b": \xff\x00\r\n\r\n\xff",
        sized(b'{"a":' * 2000), sized(b"1" * 10_000),
    ],
)  # fmt: skip
def test_no_answer_raises_and_none_is_made_up(text: bytes) -> None:
    with hostile(saying(text)) as url:
        assert post(url, {}, "", 5.0).body in (None, {})


def test_a_good_answer_is_read_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile(saying(sized(b'{"a": 1}'))) as url:
        before = threading.active_count()
        assert post(url, {}, "", 5.0) == Reply(200, {"a": 1})
        time.sleep(0.1)
        assert threading.active_count() <= before + 1
