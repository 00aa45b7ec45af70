"""One JSON request to a server: address and key, time limits, retries with backoff, a pace; no secret in messages."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from titer.schema.errors import TiterError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LARGEST = 1 << 20  # bytes of a reply; a judge's answer is a few hundred
LONGEST_WAIT = 60.0
MOST_SAID = 200  # characters of a server's own words in a message
AGAIN = frozenset({0, 200, 408, 409, 425, 429, 500, 502, 503, 504, 529})  # 200: a reply that was not what was asked


def endpoint(what: str, url: str, path: str, key_env: str) -> str:
    """The address of `path` (such as `/chat/completions`) below `url`; `TiterError` for one that holds credentials."""
    parts = urlsplit(url)
    asked = {name for name, _ in parse_qsl(parts.query)}
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TiterError(f"{what}: not an http(s) address: write https://HOST/v1")
    if parts.username or parts.password or asked - {"api-version"}:
        raise TiterError(
            f"{what} {parts.hostname}: the address is stored with the results, so it must hold no "
            f"credentials: put the key into the environment variable {key_env}"
        )
    return parts._replace(path=parts.path.rstrip("/").removesuffix(path) + path, fragment="").geturl()


def secret(what: str, url: str, key_env: str) -> str:
    """The key in an environment variable, "" for none; it is not sent over plain http to another machine."""
    key, parts = os.environ.get(key_env, "").strip(), urlsplit(url)
    if key and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise TiterError(f"{what} {parts.hostname}: will not send a key over plain http: use https")
    if key and not (key.isascii() and key.isprintable()):
        raise TiterError(f"{what}: {key_env} holds characters no key has: set it again")
    return key


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request: HTTP status (0: none came), the JSON object or None, and how long to wait (s).

    `said` is the first line of an error's own words.
    """

    status: int
    body: Mapping[str, Any] | None = None
    wait: float | None = None
    said: str = ""

    @property
    def told(self) -> str:
        """The status and what the server said of it, for a message."""
        return f"HTTP {self.status}: {self.said}" if self.said else f"HTTP {self.status}"


def refusal(what: str, url: str, reply: Reply, key_env: str, model: str, tries: int) -> TiterError | None:
    """Why no request can help: the key, the address or `model` (words that name it), nobody there; None otherwise."""
    where = f"{what} {urlsplit(url).hostname}"
    if reply.status in (401, 403):
        return TiterError(f"{where}: refused the key ({reply.told}): set {key_env}")
    if reply.status == 404 or 300 <= reply.status < 400:
        return TiterError(f"{where}: {reply.told}: check the address ending in /v1 and {model}")
    if reply.status == 0:
        return TiterError(f"{where}: no answer in {tries} tries: is the server running?")
    return None


@dataclass
class Pace:
    """At most `per_minute` requests a minute over all threads; 0 is no limit."""

    per_minute: float
    _next: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """Sleep until the next request may go."""
        if self.per_minute <= 0:
            return
        with self._lock:
            now = time.monotonic()
            at = max(self._next, now)
            self._next = at + 60.0 / self.per_minute
        time.sleep(at - now)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following it would hand the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass
class _Line:
    """The connection of one request, cut off at the deadline whatever it is at: connecting, headers, body, trailers.

    Time-outs of sockets bound a wait for the next byte, so a server that drips would hold a request for ever.
    """

    deadline: float
    _end: socket.socket | None = None

    def connect(
        self, address: tuple[str, int], timeout: float, source: tuple[str, int] | None = None
    ) -> socket.socket:
        """A connection to `address`, of which `cut` keeps hold even inside TLS."""
        made = socket.create_connection(address, max(self.deadline - time.monotonic(), 0.001), source)
        self._end = made.dup()
        if time.monotonic() >= self.deadline:
            self.cut()
        return made

    def cut(self) -> None:
        """End the connection, if there is one: whoever waits for it is told at once."""
        end, self._end = self._end, None
        if end is not None:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class _Plain(http.client.HTTPConnection):
    def __init__(self, host: str, *, line: _Line, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._create_connection = line.connect


class _Secure(http.client.HTTPSConnection):
    def __init__(self, host: str, *, line: _Line, timeout: float) -> None:
        super().__init__(host, timeout=timeout, context=_trust())
        self._create_connection = line.connect


class _PlainHandler(urllib.request.HTTPHandler):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        self.line = line

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Plain, request, line=self.line)  # type: ignore[arg-type]


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, line: _Line) -> None:
        super().__init__(context=_trust())
        self.line = line

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Secure, request, line=self.line)  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """The machine's certificates; reading them takes longer than a request."""
    return ssl.create_default_context()


def post(url: str, payload: Mapping[str, Any], key: str, timeout: float) -> Reply:
    """One request; never raises for what a server or network can do. `timeout` seconds bound all of it.

    Redirects are not followed, nothing is unpacked, and more than `LARGEST` bytes of body or 100 header lines of
    64 KiB are no reply.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(payload).encode(), headers, method="POST")
    line, replies = _Line(time.monotonic() + timeout), queue.SimpleQueue[Reply]()
    threading.Thread(target=lambda: replies.put(_exchange(request, line, timeout, key)), daemon=True).start()
    try:
        return replies.get(timeout=timeout)
    except queue.Empty:
        return Reply(0)
    finally:
        line.cut()


def _exchange(request: urllib.request.Request, line: _Line, timeout: float, key: str) -> Reply:
    opener = urllib.request.build_opener(_NoRedirect, _PlainHandler(line), _SecureHandler(line))
    try:
        with opener.open(request, timeout=timeout) as response:
            return Reply(200, _object(_read(response, line.deadline)))
    except urllib.error.HTTPError as error:
        with error:
            said = first_line(_error_body(error, line.deadline), key)
            return Reply(error.code, None, _seconds(error.headers.get("Retry-After")), said)
    except (OSError, http.client.HTTPException, ValueError):
        return Reply(0)


def _read(response: Any, deadline: float) -> bytes:
    """The body, in pieces, so that a server that drips is cut off at the deadline."""
    found = b""
    while piece := response.read1(65536):
        found += piece
        if len(found) > LARGEST or time.monotonic() > deadline:
            raise OSError("too slow or too large")
    return found


def _error_body(response: Any, deadline: float) -> bytes:
    try:
        return _read(response, deadline)
    except (OSError, http.client.HTTPException, AttributeError):  # an error may come without a body
        return b""


def first_line(body: bytes, key: str = "") -> str:
    """The first line of what an error's body says in words, at most 200 printable characters, without the key.

    Read are OpenAI's `error.message`, and `error`, `message` and `detail` of other servers; HTML says nothing.
    """
    found = _object(body) or {}
    said: Any = found.get("error") or found.get("message") or found.get("detail") or ""
    if isinstance(said, list) and said:
        said = said[0]
    if isinstance(said, dict):
        said = said.get("message") or said.get("msg") or said.get("code") or ""
    text = str(said) if found else body.decode("utf-8", "replace")
    if text.lstrip()[:1] in ("<", "{", "["):
        return ""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    plain = "".join(c if c.isprintable() else " " for c in line)
    return (plain.replace(key, "(the key)") if key else plain)[:MOST_SAID]


def _object(body: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _seconds(retry_after: str | None) -> float | None:
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return min(seconds, LONGEST_WAIT) if seconds >= 0 else None


def persist(send: Callable[[], Reply], good: Callable[[Reply], bool], retries: int, backoff: float) -> Reply:
    """Send until a reply is `good`, is of a kind that another try cannot mend, or `retries` are used up.

    Waits `backoff` seconds, doubled each time, or as long as the server asks; 60 s at most.
    """
    reply = send()
    for attempt in range(retries):
        if good(reply) or reply.status not in AGAIN:
            break
        doubled = min(backoff * 2**attempt, LONGEST_WAIT)
        time.sleep(doubled if reply.wait is None else max(reply.wait, doubled))
        reply = send()
    return reply
