"""A tiny model with a chat template, and servers that run for real: uvicorn on a socket, in a thread."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.random_models import random_model

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.tokenizer import save_tokenizer, train_tokenizer
from chinchilla_lm.model.huggingface import save_model
from chinchilla_lm.serve.app import make_application
from chinchilla_lm.serve.served_model import ServedModel, load_served_model
from chinchilla_lm.serve.server import ModelServer
from chinchilla_lm.serve.settings import Limits, ServerSettings, open_socket

TEXT = "The sailor said hello, and the sea said nothing. 你好，大海 🚀 is what the cook wrote in 1872. " * 40
TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CONTEXT = 192
MOST_VOCAB = 400


@dataclass(frozen=True, kw_only=True)
class Live:
    """A running server. `log` grows by one JSON line a request."""

    url: str
    port: int
    served: ServedModel
    server: ModelServer
    log: io.StringIO
    thread: threading.Thread

    client: httpx2.Client

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        return self.client.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.client.get(path, **options)


def make_folder(folder: Path, *, context: int = CONTEXT, template: str | None = TEMPLATE) -> Path:
    tokenizer = train_tokenizer([TEXT], MOST_VOCAB)
    save_tokenizer(tokenizer, folder / "tokenizer", max_tokens=context)
    vocab = tokenizer.get_vocab_size()
    shape = ModelShape(
        vocab=vocab, context=context, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48
    )
    model = random_model(shape, spread=0.2, seed=0, start=0)
    extra = {} if template is None else {"chat_template.jinja": template}
    save_model(model, folder / "tiny", tokenizer_folder=folder / "tokenizer", extra_files=extra)
    return folder / "tiny"


@contextlib.contextmanager
def run_live(folder: Path, settings: ServerSettings, draft: str | None = None) -> Iterator[Live]:
    served = load_served_model(folder, name="tiny", limits=settings.limits, draft=draft)
    log = io.StringIO()
    server = ModelServer(make_application(served, settings, log), settings)
    listener = open_socket(settings)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{port}"
    client = httpx2.Client(base_url=url, timeout=60, trust_env=False)
    try:
        yield Live(url=url, port=port, served=served, server=server, log=log, thread=thread, client=client)
    finally:
        client.close()
        server.should_exit = True
        thread.join(30)
        served.close(1.0)
        assert not thread.is_alive()


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that another thread does; the limit is far above what any machine needs."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def connect(live: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.port), timeout=30)


def raw_request(path: str, body: Any, *, host: str = "localhost") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
    )
    return head.encode() + b"\r\n" + content


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def live(tiny_folder: Path) -> Iterator[Live]:
    with run_live(tiny_folder, ServerSettings(port=0, limits=Limits(slots=4))) as running:
        yield running
