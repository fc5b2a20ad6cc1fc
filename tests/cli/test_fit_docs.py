"""docs/fit.md says what its commands say, and its example is what its script makes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

DOCS = Path(__file__).parents[2] / "docs"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_commands_print():
    pages = load(DOCS / "make_fit_page.py")
    page = pages.fit_page()
    assert pages.is_same(pages.PAGE.read_text(encoding="utf-8"), page), "stale: run docs/make_fit_page.py"


def test_pages_differ_by_a_word_or_a_number_and_not_by_rounding():
    is_same = load(DOCS / "make_fit_page.py").is_same
    assert is_same("a 0.5120 to 0.51\n", "a  0.5121 to 0.511\n")
    assert not is_same("a 0.512", "a 0.562")
    assert not is_same("a 0.512", "b 0.512")


def test_the_example_is_what_its_script_makes():
    made = load(DOCS / "examples" / "make_sweep.py").sweep_text()
    kept = (DOCS / "examples" / "sweep.csv").read_text(encoding="utf-8")
    head, *rows = kept.splitlines()
    assert made.splitlines()[0] == head
    numbers = [[line.split(",")[1:] for line in text.splitlines()[1:]] for text in (made, kept)]
    np.testing.assert_allclose(*(np.array(rows, dtype=float) for rows in numbers), rtol=1e-4)
