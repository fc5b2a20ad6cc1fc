"""The pages of docs/laws: every example runs as printed, every file they name exists, every law has its page."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chinchilla_lm.laws.forms.record import FORMS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "laws").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_examples_run_as_printed(page):
    # A closing fence is no output.
    text = page.read_text(encoding="utf-8").replace("\n```", "\n\n```")
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    results = doctest.DocTestRunner(verbose=False).run(test)
    assert results.failed == 0
    assert results.attempted > 0 or page.stem == "published"


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_file_named_exists(page):
    text = page.read_text(encoding="utf-8")
    for named in re.findall(r"`((?:laws|tests|docs|bench)/[\w/.]+)`", text):
        where = ROOT / "src" / "chinchilla_lm" / named if named.startswith("laws/") else ROOT / named
        assert where.exists(), named
    for link in re.findall(r"\]\(([\w/.-]+\.md)\)", text):
        assert (page.parent / link).exists(), link


def test_every_form_has_a_page_with_its_parts():
    names = {page.stem for page in PAGES}
    assert set(FORMS) <= names
    for page in PAGES:
        if page.stem in FORMS:
            text = page.read_text(encoding="utf-8")
            for part in ("**Formula.**", "**What N counts.**", "**Source.**", "**Tests.**", "## Mistakes in texts"):
                assert part in text, (page.stem, part)


def test_the_table_of_published_laws_is_written_from_the_laws():
    script = ROOT / "docs" / "make_laws_page.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "docs/laws/published.md is stale: run make docs"
