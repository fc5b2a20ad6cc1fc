"""The command line as scripts and people meet it: exit codes, one-line errors, help without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chinchilla_lm.cli.jobs import default_run_directory
from chinchilla_lm.cli.main import run_command


def test_help_imports_no_torch():
    program = (
        "import sys; from chinchilla_lm.cli.main import run_command; code = run_command(['--help']); "
        "heavy = {'torch', 'transformers', 'scipy', 'matplotlib', 'pyarrow'} & set(sys.modules); "
        "sys.exit(code or (1 if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-300:]
    assert "run" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--budget", "1s"], "give 5m or more"),
        (["run", "--budget", "5parsec"], "did you mean 'sec'"),
        (["run", "--budget", "$50"], "chinchilla plan"),
        (["run", "--budget", "5m", "--vocab", "12"], "at least 257"),
        (["rnu"], 'Did you mean "run"'),
        (["prepare", "/no/such/folder", "--out", "x"], "/no/such/folder"),
        (["generate", "/no/such/model", "hello"], "/no/such/model"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert [line.startswith("chinchilla: ") for line in captured.err.strip().splitlines()].count(True) == 1
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == [], "a refused request leaves nothing behind"


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02" * 500, b"one line only"])
def test_text_that_cannot_be_used_is_refused_naming_the_way_out(content, capsys, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_bytes(content)
    assert run_command(["prepare", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert str(folder) in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_run_directories_are_named_after_the_request():
    assert str(default_run_directory(("stdlib",), "5m")) == "runs/stdlib-5m"
    assert str(default_run_directory(("../my books/", "b.txt"), "8 H100-hours")) == "runs/my-books-b.txt-8-H100-hours"


def test_the_page_of_commands_is_what_the_commands_say():
    script = Path(__file__).parents[2] / "docs" / "make_pages.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "docs/commands.md is stale: run make docs"
