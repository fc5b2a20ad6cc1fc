"""S2: clients that hold, flood and leave. Others are served, memory is bounded, texts for nobody stop."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest
from tests.serve.conftest import Live, connect, make_folder, raw_request, run_live, wait_until

from chinchilla_lm.serve.settings import Limits, ServerSettings

IMPATIENT = Limits(
    slots=4, header_timeout_s=0.4, body_timeout_s=0.4, write_timeout_s=0.4, keep_alive_s=0.4, max_connections=64
)
LONG = {"model": "tiny", "prompt": "The sea", "max_tokens": 8000, "temperature": 1, "logit_bias": {"0": -100}}


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory):
    """A context so long that a text lasts for tens of seconds."""
    return make_folder(tmp_path_factory.mktemp("long"), context=8192)


@pytest.fixture(scope="module")
def impatient(long_folder):
    with run_live(long_folder, ServerSettings(port=0, limits=IMPATIENT)) as running:
        running.client.headers["connection"] = "close"  # else it may use one that the server is just closing
        yield running


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it; reads away what it sent."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def answers(live: Live) -> None:
    answer = live.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2})
    assert answer.status_code == 200


def running(live: Live) -> int:
    assert live.served.scheduler is not None
    return live.served.scheduler.statistics().running


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-a: "],
    ids=["nothing", "half a line", "half a header"],
)
def test_half_sent_headers_are_closed(impatient, sent):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(impatient)) for _ in range(20)]
        for connection in held:
            connection.sendall(sent)
        answers(impatient)
        wait_until(lambda: all(is_closed(connection) for connection in held))


def test_a_header_sent_byte_by_byte_is_closed(impatient):
    with connect(impatient) as connection:

        def dripped() -> bool:
            with contextlib.suppress(OSError):
                connection.send(b"x")
            return is_closed(connection)

        connection.sendall(b"GET /health HTTP/1.1\r\nx-a: ")
        wait_until(dripped)


def test_a_body_that_does_not_come_is_a_408(impatient):
    with connect(impatient) as connection:
        whole = raw_request("/v1/completions", LONG)
        connection.sendall(whole[:-5])
        assert b"408" in connection.recv(65536).split(b"\r\n")[0]
        wait_until(lambda: is_closed(connection))


def test_an_idle_connection_is_closed(impatient):
    with connect(impatient) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200" in connection.recv(65536).split(b"\r\n")[0]
        wait_until(lambda: is_closed(connection))


def test_more_connections_than_allowed_are_refused(impatient):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(impatient)) for _ in range(IMPATIENT.max_connections + 10)]
        first_lines = []
        for connection in held:
            connection.settimeout(20)
            first_lines.append(connection.recv(65536).split(b"\r\n")[0])
        assert first_lines.count(b"HTTP/1.1 503 Service Unavailable") >= 10
    wait_until(lambda: impatient.get("/health").status_code == 200)


def test_a_large_body_is_refused_before_it_is_read(impatient):
    with connect(impatient) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head + b"content-length: 60000000\r\n\r\n{")
        assert b"413" in connection.recv(65536).split(b"\r\n")[0]


def test_a_large_body_in_pieces_is_cut_off(impatient):
    with connect(impatient) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(60):
                connection.sendall(b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20)))
        with contextlib.suppress(ConnectionResetError):
            assert b"413" in connection.recv(65536).split(b"\r\n")[0]
    answers(impatient)


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
def test_a_text_for_a_client_that_left_stops(impatient, is_stream):
    connections = [connect(impatient) for _ in range(3)]
    for connection in connections:
        connection.sendall(raw_request("/v1/completions", LONG | {"stream": is_stream}))
    wait_until(lambda: running(impatient) == 3)
    left = time.monotonic()
    for connection in connections:
        connection.close()
    wait_until(lambda: running(impatient) == 0)
    print(f"stopped after {time.monotonic() - left:.2f} s")
    wait_until(lambda: impatient.log.getvalue().count('"status": 499' if not is_stream else '"status": 200') >= 1)
    answers(impatient)


def test_a_reader_that_stopped_is_disconnected(impatient):
    """Log-probabilities make the stream large; the client's window is small and it reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", impatient.port))
    body = LONG | {"stream": True, "logprobs": 20, "n": 4}
    connection.sendall(raw_request("/v1/completions", body))
    wait_until(lambda: running(impatient) > 0)
    wait_until(lambda: running(impatient) == 0, seconds=60)
    connection.close()
    last = json.loads(impatient.log.getvalue().splitlines()[-1])
    assert last["completion_tokens"] < 4 * 8000


def test_a_text_beyond_its_time_is_a_504(long_folder):
    limits = Limits(slots=2, request_timeout_s=0.3)
    with run_live(long_folder, ServerSettings(port=0, limits=limits)) as live:
        answer = live.post("/v1/completions", LONG)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "request_timeout"
        streamed = live.post("/v1/completions", LONG | {"stream": True}).text.split("\n\n")
        assert json.loads(streamed[-3].removeprefix("data: "))["error"]["code"] == "request_timeout"
        assert streamed[-2] == "data: [DONE]"
        wait_until(lambda: running(live) == 0)


@pytest.mark.torture
def test_three_hundred_slow_clients_do_not_stop_a_healthy_one(long_folder):
    """S2 in full, with the default limits: 300 slowloris, 100 slow readers, 100 that leave, 60 MB, 1e6 tokens."""
    with run_live(long_folder, ServerSettings(port=0, limits=Limits(slots=4, queue=200, max_connections=700))) as live:

        def times(count: int = 100) -> list[float]:
            found = []
            for _ in range(count):
                began = time.monotonic()
                answers(live)
                found.append(time.monotonic() - began)
            return sorted(found)

        quiet = times()
        with contextlib.ExitStack() as stack:
            began = time.monotonic()
            slow = [stack.enter_context(connect(live)) for _ in range(300)]
            for connection in slow:
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-a: ")
            under_slowloris = times()
            wait_until(lambda: all(is_closed(connection) for connection in slow), 60)
            closed_seconds = time.monotonic() - began
            readers = [stack.enter_context(connect(live)) for _ in range(100)]
            short = {"model": "tiny", "prompt": "a", "max_tokens": 50, "stream": True, "logprobs": 20}
            accepted = live.served.scheduler.statistics().accepted
            for connection in readers:
                connection.sendall(raw_request("/v1/completions", short))
            wait_until(lambda: live.served.scheduler.statistics().accepted == accepted + 100, 120)
            wait_until(lambda: running(live) == 0, 120)  # their texts are written, and wait for their readers
            under_readers = times()
            leavers = [connect(live) for _ in range(100)]
            for connection in leavers:
                connection.sendall(raw_request("/v1/completions", LONG | {"stream": True}))
            wait_until(lambda: running(live) == 4, 60)
            left = time.monotonic()
            for connection in leavers:
                connection.close()
            wait_until(lambda: running(live) == 0)
            stopped_seconds = time.monotonic() - left
        sixty = live.client.post(
            "/v1/completions", content=b" " * 60_000_000, headers={"content-type": "application/json"}
        )
        assert sixty.status_code == 413
        ids = {"model": "tiny", "prompt": [1] * 1_000_000}
        assert live.post("/v1/completions", ids).status_code in (400, 413)
        assert live.post("/v1/completions", {"model": "tiny", "prompt": "a " * 1_000_000}).status_code in (400, 413)
        print(
            f"p99 quiet {quiet[98]:.3f} s, under 300 slowloris {under_slowloris[98]:.3f} s, with 100 slow readers"
            f" {under_readers[98]:.3f} s; closed after {closed_seconds:.1f} s; stopped in {stopped_seconds:.2f} s"
        )
        assert closed_seconds < 15
        assert stopped_seconds < 1
