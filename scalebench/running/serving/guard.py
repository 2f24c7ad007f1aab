"""What every request passes before the application reads it: the API key, and the limits on its body."""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from scalebench.running.serving.api_errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_BYTES = 1_000_000
DISCARDED_BYTES = 16 * BODY_BYTES  # read and forgotten, so that a client that sends too much gets the answer
BODY_TIMEOUT_S = 30.0
OPEN = ("/health",)  # needs no key


class Guard:
    """An ASGI application around another. ``responses`` counts the statuses of all responses."""

    def __init__(self, application: Application, key: str | None, responses: Counter[int]) -> None:
        self.application, self.responses = application, responses
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is refused; pass on any other, with its body read."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.responses[message["status"]] += 1
            await send(message)

        try:
            self._check_key(scope)
            receive = await _with_body(scope, receive)
        except ApiError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, counted)
        else:
            await self.application(scope, receive, counted)

    def _check_key(self, scope: Scope) -> None:
        """Raise ``ApiError`` (401) unless the request has the key; the time it takes tells nothing about the key."""
        if self._key is None or scope["path"] in OPEN:
            return
        scheme, _, given = _header(scope, b"authorization").partition(b" ")
        if not (scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key)):
            line = "a valid API key is needed, in the header Authorization: Bearer KEY"
            raise ApiError(401, line, code="invalid_api_key")


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


async def _with_body(scope: Scope, receive: Receive) -> Receive:
    """Read the body and return what gives it to the application. Raises ``ApiError`` for one over the limits.

    A body must be declared as JSON: a web page cannot send that to a server of another address unasked.
    """
    if scope["method"] != "POST":
        return receive
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _body(receive)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    if _header(scope, b"content-type").partition(b";")[0].strip().lower() != b"application/json":
        raise ApiError(415, "give a body of JSON with the header Content-Type: application/json")
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return unread.pop() if unread else await receive()

    return read


async def _body(receive: Receive) -> bytes:
    parts, size, more = [], 0, True
    while more and size <= DISCARDED_BYTES:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size <= BODY_BYTES:
            parts.append(part)
        more = message.get("more_body", False)  # a client that left sends no more
    if size > BODY_BYTES:
        raise ApiError(413, f"the body has more than {BODY_BYTES:,} bytes")
    return b"".join(parts)
