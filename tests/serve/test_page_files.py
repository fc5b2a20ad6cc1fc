"""The files of the page without a browser: their headers, what they may not hold, and that they fit together."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import chinchilla_lm.serve
from chinchilla_lm.serve.openapi import openapi_document

FOLDER = Path(chinchilla_lm.serve.__file__).parent / "page"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
HTML = (FOLDER / "index.html").read_text(encoding="utf-8")
VOID = {"meta", "link", "input", "br", "img", "hr"}
# Each of them makes code or markup of a text, keeps something, or leaves the server.
FORBIDDEN = (
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc|setHTML",
    r"\beval\b|new Function|setTimeout\(\s*[\"'`]|setInterval\(\s*[\"'`]|javascript:|import\(",
    r"localStorage|sessionStorage|indexedDB|document\.cookie|serviceWorker|sendBeacon|postMessage",
    r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(",
)


class Tags(HTMLParser):
    """Collects the elements and checks that they close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text_in_script = ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.text_in_script += data.strip()


@pytest.fixture(scope="module")
def tags() -> Tags:
    parsed = Tags()
    parsed.feed(HTML)
    parsed.close()
    return parsed


def test_every_file_is_served_with_its_type_and_the_policy(live):
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert {path.suffix for path in FILES} == set(types)
    for path in FILES:
        answer = live.get("/" if path.name == "index.html" else f"/page/{path.name}")
        assert answer.status_code == 200
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"].split(";")[0] == types[path.suffix]
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] in ("'none'", "'self'")
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e/app.py", "__init__.py", "index.html", ""])
def test_nothing_else_is_served_under_page(live, name):
    assert live.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_make_no_markup_of_text_keep_nothing_and_stay_here(path):
    text = path.read_text(encoding="utf-8")
    for pattern in FORBIDDEN:
        assert re.search(pattern, text) is None, pattern


def test_the_document_parses_and_holds_nothing_inline(tags):
    assert tags.open == []
    assert tags.text_in_script == ""
    for tag, attributes in tags.found:
        assert not any(name == "style" or name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "/").startswith(("/", "#")), attributes
    sources = [one["src"] for tag, one in tags.found if tag == "script"]
    assert sources == ["/page/page.js"]
    named = [one["href"].rsplit("/", 1)[1] for tag, one in tags.found if tag == "link"]
    assert all((FOLDER / name).is_file() for name in named)


def test_what_the_scripts_look_for_is_in_the_document(tags):
    ids = [one["id"] for _, one in tags.found if "id" in one]
    assert len(ids) == len(set(ids))
    wanted = {name for path in SCRIPTS for name in re.findall(r'find\("([\w-]+)"\)', path.read_text(encoding="utf-8"))}
    assert wanted <= set(ids)
    referred = {one[name] for _, one in tags.found for name in ("for", "aria-describedby") if name in one}
    assert referred <= set(ids)


def test_every_field_has_the_bounds_of_the_api(tags):
    schema = openapi_document("x")["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
    properties = schema["schema"]["properties"]
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    names = re.findall(r'"(\w+)"', re.search(r"NUMBERS = \[(.*?)\]", script)[1])
    fields = {one["id"]: one for tag, one in tags.found if tag == "input" and one.get("type") == "number"}
    assert sorted(names) == sorted(fields)
    for name in names:
        bounds = properties[name]["anyOf"][0]
        assert float(fields[name]["min"]) >= bounds.get("minimum", bounds.get("exclusiveMinimum")), name
        assert float(fields[name].get("max", 0)) <= bounds["maximum"], name
        assert (fields[name]["step"] == "1") == (bounds["type"] == "integer"), name
