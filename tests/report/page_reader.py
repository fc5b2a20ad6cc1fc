"""What the tests of pages share: a reader that fails on HTML that does not nest, and words that no page may obey."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'--><!--{{7*7}} &amp;"
_VOID = {"meta", "link", "br", "hr", "img", "input", "circle", "path", "rect"}


class Page(HTMLParser):
    """Tags with their attributes, ids, text, and the contents of scripts; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.stack.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "script":
            self.scripts[-1] += data
        elif not self.stack or self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def json(self, name: str) -> Any:
        scripts = [attributes for tag, attributes in self.tags if tag == "script"]
        index = next(i for i, attributes in enumerate(scripts) if attributes.get("id") == name)
        return json.loads(self.scripts[index])


def damaged(record: dict[str, Any], value: Any, *, keep: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The record once for each of its parts but those to keep: with `value` in its place, or without it for None."""
    copies = []
    for name in record:
        if name not in keep:
            others = {key: each for key, each in record.items() if key != name}
            copies.append(others if value is None else {**others, name: value})
    return copies


def check_self_contained(text: str) -> None:
    """Nothing is loaded, ids are unique, and what points into the page points at something."""
    page = Page(text)
    assert not [attrs for _, attrs in page.tags if {"src", "srcset", "data", "action"} & attrs.keys()]
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "img")]
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        for name in (attrs.get("aria-labelledby") or "").split():
            assert name in ids
        if (attrs.get("href") or "").startswith("#"):
            assert (attrs["href"] or "")[1:] in ids
