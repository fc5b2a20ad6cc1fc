"""What an operator sets: where the server listens, who may ask, and how much of everything.

Frozen values, checked once. Units are in the names. Never opens a socket.
"""

from __future__ import annotations

import ipaddress
import math
import os
import socket
from dataclasses import dataclass, field, fields
from pathlib import Path

from chinchilla_lm.core.errors import ConfigError

LEAST_KEY_CHARACTERS = 16  # a shorter key can be guessed over a network: 16 hexadecimal digits are 64 bits
LARGEST_KEY_FILE_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request, one connection and all of them together may take.

    Attributes:
        slots: texts that are generated at once.
        queue: requests that wait beyond them; more are answered 429.
        max_prompt_tokens: of one prompt; None leaves one token of the context to the answer.
        max_tokens: new tokens of one text; None takes the context.
        max_texts: prompts times choices of one request.
        max_body_bytes: of one request; more is answered 413 before it is read.
        max_connections: open at once; more are answered 503.
        request_timeout_s: from the whole request to the last token.
        header_timeout_s: from connecting (or the first byte of the next request) to the end of the headers.
        body_timeout_s: from the headers to the end of the body.
        write_timeout_s: a client that reads nothing for so long is disconnected.
        keep_alive_s: an idle connection is closed; longer than the 5 s after which OpenAI's client stops using one.
        drain_timeout_s: running requests may take so long to finish when the server is told to stop.
    """

    slots: int = 8
    queue: int = 32
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    max_texts: int = 128
    max_body_bytes: int = 2 << 20
    max_connections: int = 512
    request_timeout_s: float = 300.0
    header_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    write_timeout_s: float = 10.0
    keep_alive_s: float = 10.0
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            least = 0 if one.name == "queue" else 1
            if one.name.endswith("_s"):
                if not 0 < value < math.inf:
                    raise ConfigError(f"{one.name} must be > 0 seconds, got {value!r}; write a number such as 10")
            elif value is not None and value < least:
                raise ConfigError(f"{one.name} must be >= {least}, got {value!r}; leave it out for the default")

    @property
    def max_requests(self) -> int:
        """Requests that may be under way at once."""
        return self.slots + self.queue

    @property
    def max_bodies_bytes(self) -> int:
        """Of all request bodies that are being read at once; keeps memory bounded when many clients upload."""
        return 16 * self.max_body_bytes


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where the server listens and who may ask.

    Attributes:
        host: an address or name to listen on; other machines reach it only if it is not a loopback address.
        port: 0 takes a free one.
        api_keys: a request must bring one of them; none are needed if empty, which only a loopback address allows.
        allow_origins: pages of these origins ("https://example.org") may ask from a browser.
        logs_prompts: the access log holds prompts.
        limits: how much of everything.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    logs_prompts: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be 0 to 65535, got {self.port}; 8000 is usual")
        if not self.is_loopback and not self.api_keys:
            raise ConfigError(
                f"host {self.host} is reachable from other machines and no API key is set; give --api-key-file FILE "
                "(or CHINCHILLA_API_KEY), or listen on 127.0.0.1"
            )
        for origin in self.allow_origins:
            if not origin.startswith(("http://", "https://")) or "/" in origin.split("://", 1)[1]:
                raise ConfigError(f"origin {origin!r} must be a scheme and a host, such as https://example.org")

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach `host`."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


def read_api_keys(path: Path | None, environment: str | None) -> tuple[str, ...]:
    """Return the keys of a file (one a line, # begins a comment) and of an environment variable's value.

    Raises:
        ConfigError: the file cannot be read or holds no key, or a key is too short or not printable ASCII.
    """
    keys = [environment.strip()] if environment and environment.strip() else []
    if path is not None:
        try:
            with open(path, "rb") as stream:
                content = stream.read(LARGEST_KEY_FILE_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the key file {path} cannot be read ({error}); write one key a line into it") from None
        found = [line.split("#", 1)[0].strip() for line in content.splitlines()]
        found = [key for key in found if key]
        if not found:
            raise ConfigError(
                f"the key file {path} holds no key; write one of {LEAST_KEY_CHARACTERS} characters a line"
            )
        keys += found
    for key in keys:
        if len(key) < LEAST_KEY_CHARACTERS or not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(  # never shows the key
                f"an API key has {len(key)} characters and needs {LEAST_KEY_CHARACTERS} of printable ASCII without "
                "spaces; `openssl rand -hex 24` makes one"
            )
    return tuple(keys)


def open_socket(settings: ServerSettings) -> socket.socket:
    """Bind and listen.

    Raises:
        ConfigError: the address is taken or not ours.
    """
    host = settings.host.strip("[]")
    try:
        family = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0][0]
        # With the protocol named, which socket.create_server leaves out: asyncio switches Nagle's algorithm off only
        # then, and each answer would wait 40 ms for the client's acknowledgement of its headers (44 ms against 2).
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":  # elsewhere it would let two servers share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, settings.port))
            listener.listen(settings.limits.max_connections)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror or error}); choose another --port"
        ) from None
