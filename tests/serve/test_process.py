"""The command as an operator runs it: started, asked, told to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest
from tests.serve.conftest import connect, raw_request, run_live, wait_until

from chinchilla_lm.cli.main import run_command
from chinchilla_lm.serve.settings import Limits, ServerSettings

LONG = {"model": "tiny", "prompt": "The sea", "max_tokens": 180, "logit_bias": {"0": -100}}


def start(folder: Path, *options: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """Return the process and its address; stdout is the access log."""
    process = subprocess.Popen(
        [sys.executable, "-m", "chinchilla_lm.cli.main", "serve", str(folder), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    found = re.search(r"http://\S+", said)
    assert found, said + process.stderr.read()
    return process, found[0]


def test_told_to_stop_it_finishes_the_running_request_and_ends_with_0(tiny_folder):
    process, url = start(tiny_folder, "--slots", "2", "--drain-timeout", "60")
    with httpx2.Client(base_url=url, timeout=60) as client:
        assert client.get("/ready").json() == {"status": "ready", "model": "tiny"}
        with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("stop", "length")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    logged = [json.loads(line) for line in out.splitlines()]
    assert [(line["path"], line["status"]) for line in logged] == [("/ready", 200), ("/v1/completions", 200)]
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url + "/health")


def test_what_is_not_finished_in_time_is_told(tiny_folder):
    with run_live(tiny_folder, ServerSettings(port=0, limits=Limits(slots=1, drain_timeout_s=0.3))) as live:
        # A stopped worker: its texts never end by themselves.
        assert live.served.scheduler is not None
        gate = threading.Event()
        engine = live.served.scheduler._engine
        extend_many = engine.extend_many  # what every step of the texts goes through
        engine.extend_many = lambda *arguments: (gate.wait(60), extend_many(*arguments))[1]
        with connect(live) as connection:
            connection.sendall(raw_request("/v1/completions", LONG))
            wait_until(lambda: live.served.scheduler.statistics().running == 1)
            live.server.should_exit = True
            answer = connection.recv(65536)
        gate.set()
        assert b" 503 " in answer.split(b"\r\n")[0]
        assert b"retry-after" in answer


def test_while_it_stops_it_is_not_ready(tiny_folder):
    with run_live(tiny_folder, ServerSettings(port=0, limits=Limits(slots=1))) as live:
        live.server._application.routes.is_draining = True
        assert live.get("/ready").status_code == 503
        assert live.get("/health").status_code == 200
        refused = live.post("/v1/completions", LONG)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


@pytest.mark.slow  # a whole start for one header; the same is tested in one process in test_doors.py
def test_a_key_from_the_environment_is_needed(tiny_folder):
    key = "k" * 32
    process, url = start(tiny_folder, CHINCHILLA_API_KEY=key)
    try:
        assert httpx2.get(url + "/v1/models").status_code == 401
        assert httpx2.get(url + "/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere"], "no config.json"),
        (["/nowhere", "--host", "0.0.0.0"], "no API key"),
        (["/nowhere", "--slots", "0"], "slots must be"),
        (["/nowhere", "--api-key-file", "/nowhere"], "key file"),
        (["/nowhere", "--port", "99999"], "port must be"),
    ],
)
def test_a_wrong_wish_is_one_line(arguments, words, capsys, monkeypatch):
    monkeypatch.delenv("CHINCHILLA_API_KEY", raising=False)
    if "--port" not in arguments:
        arguments = [*arguments, "--port", "0"]
    assert run_command(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_without_the_extra_the_way_out_is_said():
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from chinchilla_lm.cli.main import run_command\n"
        "sys.exit(run_command(['serve', '/nowhere', '--port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'chinchilla-lm[serve]'" in done.stderr


def test_the_command_line_stays_free_of_the_server():
    code = "import sys, chinchilla_lm.cli.main; sys.exit(bool({'torch', 'starlette', 'uvicorn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
