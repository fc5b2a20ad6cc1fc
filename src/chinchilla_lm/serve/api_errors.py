"""Refusals in OpenAI's shape: {"error": {"message", "type", "param", "code"}} and an HTTP status."""

from __future__ import annotations

from typing import Any

from chinchilla_lm.core.errors import ChinchillaError

RETRY_AFTER_SECONDS = 1  # a slot of a small model is free again within about a second


class ApiError(ChinchillaError):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status, 400 to 599.
        message: the value, the rule, the way out.
        kind: OpenAI's `type`.
        param: the field at fault, such as "messages[0].role".
        code: a word for programs.
        closes: the connection ends with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        param: str | None = None,
        code: str | None = None,
        closes: bool = False,
    ) -> None:
        """See the class; `kind` follows from the status if it is None."""
        super().__init__(message)
        self.status = status
        self.message = " ".join(message.split())  # one line, whatever the client's words in it
        self.kind = kind or _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.param = param
        self.code = code
        self.closes = closes or status in (408, 413)

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        if self.status in (429, 503):
            return {"retry-after": str(RETRY_AFTER_SECONDS)}
        if self.closes:
            return {"connection": "close"}
        return {}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def bad_field(param: str, message: str, code: str | None = None) -> ApiError:
    """Return the 400 for one field."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)
