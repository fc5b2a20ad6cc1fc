"""A healthy client's waiting time beside clients that hold, flood and leave (OPS S2), and the server's memory.

    python bench/serve_load.py
    python bench/serve_load.py --model FOLDER --requests 300 --rounds 5 --out load.json

`chinchilla serve` runs in a process of its own, the attackers in another, and the healthy client, one short completion
after the other on a connection that it keeps, in this one. The phases are interleaved (quiet, attack, quiet, ...), and
the figure of an attack is its 99th percentile over that of the quiet phases of the same rounds, each the median over
the rounds: other work on the machine hits both. The attackers need processor time themselves, which a machine of two
cores takes from the healthy client however good the server is: in the control phases the same attackers ask a third
process, which reads, refuses and computes nothing, while our server has the healthy client alone. Without --model a
random model of a few thousand parameters is served: then nothing but the server itself is measured. The mark is a
ratio below 2 and a growth of memory below 50 MB.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

from machine import child_environment, describe_machine, print_report, print_table

HEADERS = {"content-type": "application/json"}
SHORT = {"model": "load", "prompt": "The sea", "max_tokens": 4, "temperature": 0}
TEXT = "The sailor said hello, and the sea said nothing. That is what the cook wrote in 1872. " * 40
CONTEXT = 4096
SLOWLORIS, SLOW_READERS, LEAVERS = 300, 100, 100  # OPS S2
BIG_BODY_BYTES = 60_000_000
MANY_TOKENS = 1_000_000
LARGEST_BODY_BYTES = 2 << 20  # the server's default, for the process that stands in for it
SETTLE_SECONDS = 1.0  # after an attack has begun, and after it has ended
HELD_SECONDS = 12.0  # the server drops a client that does not read after 10
OPEN_EVERY_SECONDS = 0.05  # slow readers: their texts must not fill the queue, which is another test (S3)


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or make_model(Path(scratch))
        server, port = start_server(folder, options.threads)
        try:
            report = measure(server, port, options)
        finally:
            server.terminate()
            server.wait(60)
    rows = [
        [name, *(f"{1000 * phase[key]:.1f}" for key in ("p50", "p99", "worst")), f"{phase['ratio']:.2f}"]
        for name, phase in report["phases"].items()
    ]
    print_table("a healthy client's wait, ms", ["beside", "p50", "p99", "worst", "p99 / quiet"], rows)
    print("control: the same attackers at another process", file=sys.stderr)
    print(f"memory grew by {report['memory_growth_mb']:.0f} MB", file=sys.stderr)
    print_report(report, options.out)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; a tiny random model by default")
    parser.add_argument("--requests", type=int, default=200, help="of the healthy client in each phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="attacks, separated by commas")
    parser.add_argument("--out")
    return parser.parse_args()


def measure(server: subprocess.Popen, port: int, options: argparse.Namespace) -> dict:
    names = options.only.split(",") if options.only else list(ATTACKS)
    waits: dict[str, list[list[float]]] = {"quiet": []}
    healthy_waits(port, options.requests)  # warms up
    before = memory_mb(server.pid)
    with other_process() as other_port:
        for index in range(options.rounds):
            for name in names:
                waits["quiet"].append(healthy_waits(port, options.requests))
                waits.setdefault(name, []).append(under_attack(name, port, options.requests))
                controlled = under_attack(name, port, options.requests, attacked=other_port)
                waits.setdefault(f"{name}, control", []).append(controlled)
                print(f"round {index}: {name}", file=sys.stderr, flush=True)
    quiet_p99 = percentile(waits["quiet"], 0.99)
    phases = {
        name: {
            "p50": percentile(found, 0.5),
            "p99": percentile(found, 0.99),
            "worst": max(map(max, found)),
            "ratio": percentile(found, 0.99) / quiet_p99,
        }
        for name, found in waits.items()
    }
    return {
        "bench": "serve_load/1",
        "machine": describe_machine(options.threads),
        "rounds": options.rounds,
        "requests": options.requests,
        "phases": phases,
        "memory_growth_mb": memory_mb(server.pid) - before,
        "load_average": os.getloadavg(),
    }


def percentile(rounds: list[list[float]], share: float) -> float:
    """The median over the rounds of each round's percentile: one round beside other work does not decide."""
    return statistics.median(sorted(waits)[min(len(waits) - 1, int(share * len(waits)))] for waits in rounds)


def healthy_waits(port: int, count: int) -> list[float]:
    client, short = http.client.HTTPConnection("127.0.0.1", port, timeout=60), json.dumps(SHORT)
    found = []
    for _ in range(count):
        start = time.perf_counter()
        status = post(client, short)
        found.append(time.perf_counter() - start)
        assert status == 200, status
    client.close()
    return found


def under_attack(name: str, port: int, count: int, attacked: int | None = None) -> list[float]:
    """Waits of the healthy client while attackers ask the same server, or the one at the port `attacked`."""
    context = multiprocessing.get_context("spawn")
    has_begun, is_over = context.Event(), context.Event()
    attacker = context.Process(target=attack, args=(name, attacked or port, has_begun, is_over), daemon=True)
    attacker.start()
    has_begun.wait(60)
    time.sleep(SETTLE_SECONDS)
    found = healthy_waits(port, count)
    is_over.set()
    attacker.join(60)
    assert attacker.exitcode == 0, f"the attack {name} failed"
    time.sleep(SETTLE_SECONDS)
    return found


def attack(name: str, port: int, has_begun: Event, is_over: Event) -> None:
    """In its own process: attack until it is over."""
    with suppress(ConnectionError, TimeoutError):
        ATTACKS[name](port, has_begun, is_over)


def slowloris(port: int, has_begun: Event, is_over: Event) -> None:
    """Half a header on each connection; those that the server closes are opened again."""
    held: list[socket.socket] = []
    while not is_over.is_set():
        while len(held) < SLOWLORIS:
            held.append(connect(port))
            held[-1].sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-a: ")
        has_begun.set()
        held = [connection for connection in held if send(connection, b"x")]
        time.sleep(0.2)


def slow_readers(port: int, has_begun: Event, is_over: Event) -> None:
    """Streams that nobody reads; a text is short, so that slots are free again and only the answers wait."""
    body = json.dumps(SHORT | {"stream": True, "logprobs": 20, "max_tokens": 40}).encode()
    held: list[tuple[float, socket.socket]] = []
    while not is_over.is_set():
        if len(held) < SLOW_READERS:
            held.append((time.monotonic(), connect(port, receive_bytes=4096)))
            held[-1][1].sendall(head(len(body)) + body)
        else:
            has_begun.set()
        if time.monotonic() - held[0][0] > HELD_SECONDS:
            held.pop(0)[1].close()
        time.sleep(OPEN_EVERY_SECONDS)


def leavers(port: int, has_begun: Event, is_over: Event) -> None:
    """Clients that ask for a long text and leave at once, one after the other."""
    body = json.dumps(SHORT | {"stream": True, "max_tokens": 1000, "logit_bias": {"0": -100}}).encode()
    has_begun.set()
    for _ in range(LEAVERS):
        if is_over.is_set():
            return
        with connect(port) as connection:
            connection.sendall(head(len(body)) + body)
            time.sleep(0.02)
    is_over.wait()


def big_bodies(port: int, has_begun: Event, is_over: Event) -> None:
    """60 MB announced, and sent for as long as the server takes it."""
    chunk = b" " * (1 << 16)
    has_begun.set()
    while not is_over.is_set():
        with connect(port) as connection, suppress(OSError):
            connection.sendall(head(BIG_BODY_BYTES))
            for _ in range(BIG_BODY_BYTES // len(chunk)):
                connection.sendall(chunk)
        time.sleep(0.1)


def million_tokens(port: int, has_begun: Event, is_over: Event) -> None:
    """A prompt of a million tokens, as ids and as text, in bodies that are small enough to be read."""
    has_begun.set()
    prompts = ("a " * (MANY_TOKENS - 40_000), [1] * (MANY_TOKENS // 2))
    bodies = [json.dumps(SHORT | {"prompt": prompt}) for prompt in prompts]  # written once: it is the attacker's time
    while not is_over.is_set():
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for body in bodies:
            assert post(client, body) in (400, 413)
        client.close()
        time.sleep(0.1)


ATTACKS: dict[str, Callable[[int, Event, Event], None]] = {
    "slowloris": slowloris,
    "slow_readers": slow_readers,
    "leavers": leavers,
    "big_bodies": big_bodies,
    "million_tokens": million_tokens,
}


@contextmanager
def other_process() -> Iterator[int]:
    """A process that is attacked instead of the server in the control phases; yields its port."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=refuse_all, args=(sender,), daemon=True)
    process.start()
    try:
        yield receiver.recv()
    finally:
        process.terminate()
        process.join(60)


def refuse_all(sender: Connection) -> None:
    """Accept all; refuse a large body at its headers and others at their end; hold what is not whole, and streams."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener, selectors.DefaultSelector() as selector:
        sender.send(listener.getsockname()[1])
        selector.register(listener, selectors.EVENT_READ, None)
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    connection, _ = listener.accept()
                    selector.register(connection, selectors.EVENT_READ, bytearray())
                elif not take(key.fileobj, key.data):  # type: ignore[arg-type] - a socket
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]


def take(connection: socket.socket, received: bytearray) -> bool:
    """Read what has come, answer a whole request; whether the connection is kept."""
    try:
        piece = connection.recv(1 << 18)
        received += piece
        end = received.find(b"\r\n\r\n")
        if not piece or end < 0:
            return bool(piece)
        length = int(received[:end].lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if length > LARGEST_BODY_BYTES:
            connection.sendall(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return False
        if len(received) - end - 4 >= length and b'"stream": true' not in received:
            received.clear()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    except OSError:
        return False
    return True


def connect(port: int, receive_bytes: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", port))
    return connection


def send(connection: socket.socket, piece: bytes) -> bool:
    """Whether the connection still takes bytes."""
    try:
        connection.sendall(piece)
    except OSError:
        connection.close()
        return False
    return True


def head(length: int) -> bytes:
    lines = ("POST /v1/completions HTTP/1.1", "host: localhost", "content-type: application/json")
    return "\r\n".join((*lines, f"content-length: {length}", "", "")).encode()


def post(client: http.client.HTTPConnection, body: str) -> int:
    client.request("POST", "/v1/completions", body, HEADERS)
    answer = client.getresponse()
    answer.read()
    return answer.status


def start_server(folder: Path, threads: int) -> tuple[subprocess.Popen, int]:
    words = [sys.executable, "-m", "chinchilla_lm.cli.main", "serve", str(folder), "--name", "load", "--port", "0"]
    words += ["--queue", "200", "--max-connections", "700", "--threads", str(threads)]
    environment = child_environment(threads)
    server = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if line.startswith("serving "):
            port = int(line.rsplit(":", 1)[1])
            break
    else:
        raise SystemExit("the server did not start")
    while True:
        with suppress(OSError), connect(port):
            return server, port
        time.sleep(0.05)


def memory_mb(pid: int) -> float:
    """Resident memory of a process, MB (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def make_model(folder: Path) -> Path:
    from chinchilla_lm.core.shapes import ModelShape
    from chinchilla_lm.data.tokenizer import save_tokenizer, train_tokenizer
    from chinchilla_lm.model.huggingface import save_model
    from chinchilla_lm.model.transformer import Transformer, initialise

    tokenizer = train_tokenizer([TEXT], 300)
    save_tokenizer(tokenizer, folder / "tokenizer", max_tokens=CONTEXT)
    shape = ModelShape(
        vocab=tokenizer.get_vocab_size(),
        context=CONTEXT,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=48,
    )
    model = Transformer(shape)
    initialise(model, seed=0)
    save_model(model, folder / "load", tokenizer_folder=folder / "tokenizer")
    return folder / "load"


if __name__ == "__main__":
    main()
