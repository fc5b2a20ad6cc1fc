"""docs/serving.md: its examples run, its tables say what the code says."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from chinchilla_lm.cli.serve import KEY_VARIABLE, AddressOptions, LimitOptions
from chinchilla_lm.serve.openai_schema import ChatBody, CompletionBody
from chinchilla_lm.serve.openapi import openapi_document
from chinchilla_lm.serve.settings import Limits, ServerSettings
from chinchilla_lm.serve.translate import MOST_ENTRIES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def here(text: str, live) -> str:
    return text.replace("http://127.0.0.1:8000", live.url).replace("my-model", "tiny")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("script", blocks("bash"))
def test_the_curl_examples_run(live, script):
    done = subprocess.run(["bash", "-c", here(script, live)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_the_python_examples_run(live, capsys):
    exec(compile("\n".join(here(block, live) for block in blocks("python")), "docs/serving.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert "32" in lines  # the width of the tiny model
    assert {" yes", " no"} & set(lines)


def test_the_table_of_limits_is_the_codes():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", PAGE, re.MULTILINE))
    for one in dataclasses.fields(Limits):
        shown = (
            "the context"
            if one.default is None
            else f"{one.default:g}"
            if one.name.endswith("_s")
            else str(one.default)
        )
        assert rows[one.name] == shown, one.name
    assert f"{MOST_ENTRIES:,} log-probabilities" in PAGE


def test_every_field_and_route_is_named():
    names = {one.name for body in (CompletionBody, ChatBody) for one in dataclasses.fields(body)} - {"model", "prompt"}
    assert {name for name in names if f"`{name}`" not in PAGE} == set()
    routes = [path for path in openapi_document("x")["paths"] if "{" not in path]
    assert [path for path in routes if path not in PAGE] == []


def test_the_commands_defaults_are_the_limits(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert LimitOptions().limits() == Limits()
    assert AddressOptions().settings(Limits()) == ServerSettings()


def test_metrics_named_on_the_page_exist(live):
    found = live.get("/metrics").text
    for name in re.findall(r"`(chinchilla_\w+)", PAGE.split("## Metrics")[1].split("```")[0]):
        assert f"# TYPE {name}" in found or f"{name} " in found, name
