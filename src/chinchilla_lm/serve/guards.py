"""What every request passes before a route sees it, from the outside in: `Envelope`, `Doors`, then the routes.

Envelope gives the request its id, counts and logs it, and adds the headers that protect browsers. Doors lets in whom it
should: a Host that is ours (DNS rebinding), an Origin that is ours or allowed (other sites' pages), an API key on every
route but /health. Neither reads a body.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chinchilla_lm.serve.api_errors import ApiError
from chinchilla_lm.serve.metrics import Metrics
from chinchilla_lm.serve.settings import ServerSettings

OPEN_ROUTES = ("/health",)
CLIENT_LEFT_STATUS = 499  # nginx's; never sent, only counted and logged
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_PROTECTION = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
_logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Exchange:
    """What is known of one request while it lasts; in scope["exchange"].

    Attributes:
        request_id: the client's x-request-id if it is harmless, else our own.
        began: on the monotonic clock.
        body_bytes: of its body, 0 until it has been read.
        notes: further fields of the access log.
        at_end: called once when the answer is complete or the client has left.
    """

    request_id: str
    began: float
    body_bytes: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    at_end: list[Callable[[], None]] = field(default_factory=list)


class Envelope:
    """The outermost application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[str], log: TextIO | None = None) -> None:
        """Wrap.

        Args:
            app: what is inside.
            metrics: counts.
            routes: known paths; all others count as "other".
            log: where the access log's JSON lines go; None is stdout.
        """
        self._app, self._metrics, self._routes, self._log = app, metrics, frozenset(routes), log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        is_harmless = _REQUEST_ID.fullmatch(asked) is not None
        exchange = Exchange(request_id=asked if is_harmless else new_id(), began=time.monotonic())
        scope["exchange"] = exchange
        status, is_complete = CLIENT_LEFT_STATUS, False

        async def send_marked(message: Message) -> None:
            nonlocal status, is_complete
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", exchange.request_id.encode()), *_PROTECTION]
                named = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((name, value) for name, value in own if name not in named)]
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except Exception:  # a bug of ours: the client has its answer (`failed_response`), the trace stays here
            _logger.exception("request %s failed", exchange.request_id)
            if not is_complete:
                raise  # the connection is closed in the middle of the answer, which is what the client must see
        finally:
            for close in exchange.at_end:
                close()
            self._note(scope, exchange, status)

    def _note(self, scope: Scope, exchange: Exchange, status: int) -> None:
        seconds = time.monotonic() - exchange.began
        path = scope["path"]
        route = path if path in self._routes else "/v1/models/{model}" if path.startswith("/v1/models/") else "other"
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        self._metrics.count_request(route, method, status, seconds)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": exchange.request_id,
            "client": (scope.get("client") or ("",))[0],
            "method": method,
            "path": path[:200],
            "status": status,
            "seconds": round(seconds, 4),
            **exchange.notes,
        }
        print(json.dumps(line), file=self._log or sys.stdout, flush=True)


class Doors:
    """Lets a request in, or refuses it."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        """Wrap."""
        self._app, self._settings = app, settings
        self._keys = [key.encode() for key in settings.api_keys]
        self._own_names = {"localhost", "127.0.0.1", "[::1]", settings.host, f"[{settings.host.strip('[]')}]"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and pass on."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                _check_framing(headers)
                self._check_host(headers)
                self._check_origin(headers)
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
            if self._keys and scope["path"] not in OPEN_ROUTES and not self._has_key(headers):
                await self._ask_for_key(scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """On a loopback address, a name that is not ours was pointed at us by somebody's DNS."""
        if not self._settings.is_loopback:
            return
        hosts = headers.getlist("host")
        name = re.sub(r":[0-9]{1,5}$", "", hosts[0].lower()) if len(hosts) == 1 else ""
        if name not in self._own_names:
            raise ApiError(
                403, f"Host {name[:80]!r} is not this server; ask it as localhost or 127.0.0.1", code="unknown_host"
            )

    def _check_origin(self, headers: Headers) -> None:
        """Browsers name the page that asks; other programs name none."""
        origin = headers.get("origin")
        if origin is None or origin in self._settings.allow_origins:
            return
        if origin.split("://")[-1].lower() != headers.get("host", "").lower():
            raise ApiError(
                403,
                f"pages of {origin[:80]!r} may not ask; start the server with --allow-origin",
                code="unknown_origin",
            )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, word = headers.get("authorization", "").partition(" ")
        given = word.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() == "basic":  # browsers ask their user for it: the password is the key
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        # Every key is compared, each in constant time: the time says nothing of which one is near.
        return any([hmac.compare_digest(given, key) for key in self._keys])  # noqa: C419

    def _ask_for_key(self, scope: Scope) -> JSONResponse:
        error = ApiError(401, "an API key is needed; send the header Authorization: Bearer KEY", code="invalid_api_key")
        response = error_response(error)
        scheme = "Basic" if scope["path"] == "/" else "Bearer"  # a browser then asks, and sends it on for the page too
        response.headers["www-authenticate"] = f'{scheme} realm="chinchilla"'
        return response


def _check_framing(headers: Headers) -> None:
    """Two lengths of a body may be read differently by a proxy and here, and hide a request (RFC 9112, 6.1)."""
    if "transfer-encoding" in headers and "content-length" in headers:
        message = "transfer-encoding and content-length both give the body's length; send one of them"
        raise ApiError(400, message, code="two_lengths", closes=True)


def new_id() -> str:
    """Return 24 hexadecimal digits that no other answer has. No secret: the system's generator would cost a switch."""
    return f"{random.getrandbits(96):024x}"


def error_response(error: ApiError) -> JSONResponse:
    """Return the answer of an error."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def failed_response(request: Request, _: Exception) -> JSONResponse:
    """Return the answer of a bug of ours: it says where the trace is, and nothing of it."""
    return error_response(
        ApiError(500, f"the server failed; its log has request {request.scope['exchange'].request_id}")
    )


async def left_response(_: Request, __: Exception) -> Response:
    """Return what is sent to a client that has left: nothing of it is; the status is counted and logged."""
    return Response(status_code=CLIENT_LEFT_STATUS)
