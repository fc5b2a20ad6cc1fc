"""Who may ask: keys, Host, Origin, CORS; and what is written of a request."""

from __future__ import annotations

import base64
import json
import socket

import pytest
from tests.serve.conftest import connect, run_live, wait_until

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.serve.settings import Limits, ServerSettings, open_socket, read_api_keys

KEY = "0123456789abcdef0123456789abcdef"
OTHER_KEY = "another-key-of-32-characters-xxx"
ROUTES = ["/", "/ready", "/metrics", "/v1/models", "/v1/models/tiny", "/openapi.json", "/nothing"]


@pytest.fixture(scope="module")
def locked(tiny_folder):
    settings = ServerSettings(
        port=0,
        api_keys=(KEY, OTHER_KEY),
        allow_origins=("https://friend.example",),
        limits=Limits(slots=2),
        logs_prompts=True,
    )
    with run_live(tiny_folder, settings) as running:
        yield running


def test_every_route_but_health_needs_a_key(locked):
    for path in ROUTES:
        answer = locked.get(path)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["type"] == "authentication_error"
        assert "www-authenticate" in answer.headers
    for path in (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/classify",
        "/tokenize",
        "/detokenize",
    ):
        assert locked.post(path, {}).status_code == 401, path
    assert locked.get("/health").status_code == 200


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_each_key_opens(locked, key):
    assert locked.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
    basic = base64.b64encode(f"me:{key}".encode()).decode()
    assert locked.get("/", headers={"authorization": f"Basic {basic}"}).status_code == 200


@pytest.mark.parametrize(
    "word",
    [
        "",
        "Bearer",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        KEY,
        f"Token {KEY}",
        "Basic !!!",
        "Basic OnhY",
        "Bearer \xff",
    ],
)
def test_anything_else_does_not_open(locked, word):
    headers = {"authorization": word.encode("latin-1")}
    assert locked.get("/v1/models", headers=headers).status_code == 401


def test_a_browser_is_asked_for_the_key_at_the_page(locked):
    assert locked.get("/").headers["www-authenticate"].startswith("Basic")
    assert locked.get("/v1/models").headers["www-authenticate"].startswith("Bearer")


def test_an_allowed_origin_may_ask_and_no_other(locked):
    headers = {"authorization": f"Bearer {KEY}", "origin": "https://friend.example"}
    answer = locked.get("/v1/models", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-credentials" not in answer.headers
    preflight = {"origin": "https://friend.example", "access-control-request-method": "POST"}
    assert locked.client.options("/v1/completions", headers=preflight).status_code == 200
    for origin in ("https://evil.example", "null", "https://friend.example.evil"):
        answer = locked.get("/v1/models", headers=headers | {"origin": origin})
        assert answer.status_code == 403, origin
        assert "access-control-allow-origin" not in answer.headers


def test_without_allowed_origins_no_other_page_may_ask(live):
    answer = live.get("/v1/models", headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert live.get("/v1/models", headers={"origin": live.url}).status_code == 200  # our own page
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert live.client.options("/v1/completions", headers=preflight).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "localhost.evil", "", "10.0.0.1"])
def test_a_name_that_is_not_ours_is_refused(live, host):
    """DNS rebinding: the browser believes that 127.0.0.1 is evil.example."""
    assert live.get("/health", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9999", "LOCALHOST:1", "[::1]:8000"])
def test_our_own_names_are_fine(live, host):
    assert live.get("/health", headers={"host": host}).status_code == 200


def test_answers_carry_an_id_and_protect_browsers(live):
    answer = live.get("/health", headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for bad in ("a b", "x" * 65, 'a"b', "a\tb"):
        made = live.get("/health", headers={"x-request-id": bad}).headers["x-request-id"]
        assert len(made) == 24
    page = live.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "server" not in page.headers


def test_the_access_log_has_no_prompts_unless_asked(live, locked):
    body = {"model": "tiny", "prompt": "The sailor", "max_tokens": 3, "temperature": 0}
    live.post("/v1/completions", body, headers={"x-request-id": "quiet"})
    line = last_line(live, "quiet")
    assert line["status"] == 200
    assert (line["method"], line["path"], line["client"]) == ("POST", "/v1/completions", "127.0.0.1")
    assert line["prompt_tokens"] == len(live.served.tokenizer.encode("The sailor").ids)
    assert "sailor" not in live.log.getvalue()
    locked.post("/v1/completions", body, headers={"authorization": f"Bearer {KEY}", "x-request-id": "loud"})
    assert last_line(locked, "loud")["prompts"] == ["The sailor"]
    assert KEY not in locked.log.getvalue()


def last_line(live, request_id: str) -> dict:
    """The line of a request, which is written when its answer has been sent."""

    def found() -> list[dict]:
        lines = [json.loads(line) for line in live.log.getvalue().splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if line["request_id"] == request_id]

    wait_until(lambda: bool(found()))
    return found()[-1]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_a_public_address_needs_a_key(host):
    with pytest.raises(ConfigError, match="no API key"):
        ServerSettings(host=host)
    assert not ServerSettings(host=host, api_keys=(KEY,)).is_loopback


def test_keys_are_read_and_weak_ones_refused(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# team\n{KEY}\n\n{OTHER_KEY}  # bob\n")
    assert read_api_keys(path, None) == (KEY, OTHER_KEY)
    assert read_api_keys(None, f" {KEY}\n") == (KEY,)
    assert read_api_keys(None, "") == ()
    path.write_text("short\n")
    with pytest.raises(ConfigError, match="has 5 characters") as caught:
        read_api_keys(path, None)
    assert "short" not in str(caught.value)
    path.write_text("# nothing\n")
    for place in (path, tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigError, match="key file"):
            read_api_keys(place, None)


@pytest.mark.parametrize(
    "changes",
    [{"slots": 0}, {"queue": -1}, {"max_tokens": 0}, {"request_timeout_s": 0.0}, {"write_timeout_s": float("nan")}],
)
def test_limits_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        Limits(**changes)


def test_answers_are_not_held_back():
    """asyncio switches Nagle's algorithm off only for sockets that name their protocol: 44 ms an answer, or 2."""
    with open_socket(ServerSettings(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_taken_port_is_said():
    with open_socket(ServerSettings(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            open_socket(ServerSettings(port=port))
    with pytest.raises(ConfigError, match="origin"):
        ServerSettings(allow_origins=("*",))


def test_a_request_of_two_lengths_is_refused_and_its_connection_closed(live):
    body = b'{"prompt": "a"}'
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    head = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with connect(live) as connection:
        hidden = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"
        framing = b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n" % (len(chunked) + len(hidden))
        connection.sendall(head + framing + chunked + hidden)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))  # to its end
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"two_lengths" in answer
    with connect(live) as connection:
        connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n" + chunked)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
