"""`chinchilla serve`: a model behind the OpenAI interface. Heavy imports stand inside the function."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from chinchilla_lm.core.errors import ConfigError

KEY_VARIABLE = "CHINCHILLA_API_KEY"
Flag = Annotated[bool, Parameter(negative="")]


def serve(  # noqa: PLR0913 - a command has as many arguments as options
    model: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: Path | None = None,
    name: str | None = None,
    slots: int = 8,
    queue: int = 32,
    max_prompt_tokens: int | None = None,
    max_tokens: int | None = None,
    max_body_bytes: int = 2 << 20,
    max_connections: int = 512,
    request_timeout: float = 300.0,
    drain_timeout: float = 30.0,
    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
    draft: str | None = None,
    threads: int = 0,
    allow_origin: tuple[str, ...] = (),
    log_prompts: Flag = False,
) -> None:
    """Serve a model with the OpenAI interface, until told to stop; running requests are finished first.

    Args:
        model: A model folder or a run directory.
        host: Address to listen on; another than this machine's own needs an API key.
        port: Port to listen on; 0 takes a free one.
        api_key_file: Keys that requests must bring, one a line; the environment's CHINCHILLA_API_KEY is one more.
        name: What clients call the model; the folder's name by default.
        slots: Texts that are written at once.
        queue: Requests that may wait beyond them; more are answered 429.
        max_prompt_tokens: Longest prompt; by default the model's context.
        max_tokens: Most new tokens of one text; by default the model's context.
        max_body_bytes: Largest request.
        max_connections: Most open connections.
        request_timeout: Seconds that a request may take.
        drain_timeout: Seconds that running requests may take to finish when the server is told to stop.
        weights: Number format of decoding; int8 is fastest and slightly less exact.
        draft: A smaller model that guesses tokens; texts stay the same, and few at a time may come sooner: a folder,
            "auto" for the run's drafts/, or "int8" for the model's own copy with int8 weights.
        threads: Processor cores to use; 0 takes all.
        allow_origin: Web pages of these origins may ask from a browser.
        log_prompts: Write prompts into the access log.
    """
    from chinchilla_lm.serve.settings import Limits, ServerSettings, open_socket, read_api_keys  # as below

    limits = Limits(
        slots=slots,
        queue=queue,
        max_prompt_tokens=max_prompt_tokens,
        max_tokens=max_tokens,
        max_body_bytes=max_body_bytes,
        max_connections=max_connections,
        request_timeout_s=request_timeout,
        drain_timeout_s=drain_timeout,
    )
    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=read_api_keys(api_key_file, os.environ.get(KEY_VARIABLE)),
        allow_origins=allow_origin,
        logs_prompts=log_prompts,
        limits=limits,
    )
    listener = open_socket(settings)  # before the model is loaded: a taken port is said at once
    try:  # torch and the optional server packages take seconds to import
        from chinchilla_lm.serve.served_model import load_served_model
        from chinchilla_lm.serve.server import run_server
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'chinchilla-lm[serve]'") from None
    if threads > 0:
        import torch

        torch.set_num_threads(threads)
    served = load_served_model(model, name=name, weights=weights, limits=limits, draft=draft)
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {served.name} on http://{shown}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    run_server(served, settings, listener)
