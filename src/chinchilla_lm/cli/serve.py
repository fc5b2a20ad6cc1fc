"""`chinchilla serve`: a model behind the OpenAI interface. Heavy imports stand inside the functions."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from chinchilla_lm.core.errors import ConfigError

if TYPE_CHECKING:
    from chinchilla_lm.serve.settings import Limits, ServerSettings

KEY_VARIABLE = "CHINCHILLA_API_KEY"
Flag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*", group=Group("Address and clients", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class AddressOptions:
    """Where the server listens, and who may ask."""

    host: str = "127.0.0.1"
    """Address to listen on; another than this machine's own needs an API key."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key_file: Path | None = None
    """Keys that requests must bring, one a line; the environment's CHINCHILLA_API_KEY is one more."""
    allow_origin: tuple[str, ...] = ()
    """Web pages of these origins may ask from a browser."""
    log_prompts: Flag = False
    """Write prompts into the access log."""

    def settings(self, limits: Limits) -> ServerSettings:
        """Return what the server is told, with the environment's key.

        Raises:
            ConfigError: an address, a key or an origin that cannot be.
        """
        from chinchilla_lm.serve.settings import ServerSettings, read_api_keys

        return ServerSettings(
            host=self.host,
            port=self.port,
            api_keys=read_api_keys(self.api_key_file, os.environ.get(KEY_VARIABLE)),
            allow_origins=self.allow_origin,
            logs_prompts=self.log_prompts,
            limits=limits,
        )


@Parameter(name="*", group=Group("Limits", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """How much of everything; the defaults are those of `serve.settings.Limits`."""

    slots: int = 8
    """Texts that are written at once."""
    queue: int = 32
    """Requests that may wait beyond them; more are answered 429."""
    max_prompt_tokens: int | None = None
    """Longest prompt; by default the model's context."""
    max_tokens: int | None = None
    """Most new tokens of one text; by default the model's context."""
    max_body_bytes: int = 2 << 20
    """Largest request."""
    max_connections: int = 512
    """Most open connections."""
    request_timeout: float = 300.0
    """Seconds that a request may take."""
    drain_timeout: float = 30.0
    """Seconds that running requests may take to finish when the server is told to stop."""

    def limits(self) -> Limits:
        """Return the limits, checked.

        Raises:
            ConfigError: a number out of its range.
        """
        from chinchilla_lm.serve.settings import Limits

        return Limits(
            slots=self.slots,
            queue=self.queue,
            max_prompt_tokens=self.max_prompt_tokens,
            max_tokens=self.max_tokens,
            max_body_bytes=self.max_body_bytes,
            max_connections=self.max_connections,
            request_timeout_s=self.request_timeout,
            drain_timeout_s=self.drain_timeout,
        )


@Parameter(name="*", group=Group("Decoding", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How texts are written."""

    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format of decoding; int8 is fastest and slightly less exact."""
    draft: str | None = None
    """A smaller model that guesses tokens; texts stay the same, and few at a time may come sooner: a folder, "auto" for
    the run's drafts/, or "int8" for the model's own copy with int8 weights."""
    threads: int = 0
    """Processor cores to use; 0 takes all."""


_ADDRESS, _LIMITS, _DECODING = AddressOptions(), LimitOptions(), DecodingOptions()


def serve(
    model: Path,
    *,
    name: str | None = None,
    address: AddressOptions = _ADDRESS,
    most: LimitOptions = _LIMITS,
    decoding: DecodingOptions = _DECODING,
) -> None:
    """Serve a model with the OpenAI interface, until told to stop; running requests are finished first.

    Args:
        model: A model folder or a run directory.
        name: What clients call the model; the folder's name by default.
        address: Where the server listens, and who may ask.
        most: How much of everything.
        decoding: How texts are written.
    """
    from chinchilla_lm.serve.settings import open_socket  # as below

    limits = most.limits()
    settings = address.settings(limits)
    listener = open_socket(settings)  # before the model is loaded: a taken port is said at once
    try:  # torch and the optional server packages take seconds to import
        from chinchilla_lm.serve.served_model import load_served_model
        from chinchilla_lm.serve.server import run_server
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'chinchilla-lm[serve]'") from None
    if decoding.threads > 0:
        import torch

        torch.set_num_threads(decoding.threads)
    served = load_served_model(model, name=name, weights=decoding.weights, limits=limits, draft=decoding.draft)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"serving {served.name} on http://{shown}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    run_server(served, settings, listener)
