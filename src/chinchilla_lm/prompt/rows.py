"""Fields that follow from a row's own: what a template would otherwise have to compute.

    token-classification   text, entities [{text, type}]      from tokens, tags (IOB2)
    relation-extraction    head_text, tail_text, marked       from text, head, tail (character spans)
    dialogue               history [{role, content}], reply   from messages (the reply: the assistant's last turn)
    summarization          summary as one text                from a list of references (the first)

A field that the row already has is left as it is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from chinchilla_lm.core.errors import DataError


def with_derived_fields(task: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Add the fields that follow.

    Args:
        task: of `core.tasks.TASKS`.
        row: canonical fields.

    Returns:
        A new row.

    Raises:
        DataError: tags that do not fit the tokens, or a span outside the text.
    """
    derived: dict[str, Any] = {}
    if task == "token-classification" and "tokens" in row:
        derived["text"] = join_tokens(row["tokens"])
        if "tags" in row:
            derived["entities"] = [
                {"text": join_tokens(row["tokens"][start:end]), "type": kind}
                for start, end, kind in tag_spans(row["tokens"], row["tags"])
            ]
    elif task == "relation-extraction" and {"text", "head", "tail"} <= set(row):
        derived = _relation_fields(row["text"], row["head"], row["tail"])
    elif task == "dialogue" and "messages" in row:
        messages = list(row["messages"])
        has_reply = bool(messages) and messages[-1].get("role") == "assistant"
        derived["history"] = messages[:-1] if has_reply else messages
        if has_reply:
            derived["reply"] = messages[-1].get("content", "")
    elif task == "summarization" and isinstance(row.get("summary"), (list, tuple)) and row["summary"]:
        return {**row, "summary": row["summary"][0]}
    return {**derived, **row}


def join_tokens(tokens: Sequence[str]) -> str:
    """Write tokens as text: one space between two, none between two Chinese or Japanese characters."""
    text = ""
    for token in tokens:
        if text and not (_is_wide(text[-1]) and _is_wide(token[:1])):
            text += " "
        text += token
    return text


def tag_spans(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Read IOB2 tags as spans.

    Args:
        tokens: the words.
        tags: "O", "B-type" or "I-type", one a word; an I- that continues nothing begins a span.

    Returns:
        (first token, one past the last, type), in order.

    Raises:
        DataError: different lengths, or a tag of another form.
    """
    if len(tokens) != len(tags):
        raise DataError(f"{len(tags)} tags for {len(tokens)} tokens; give one tag a token")
    spans: list[tuple[int, int, str]] = []
    for number, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if tag == "O":
            continue
        if mark not in ("B", "I") or not kind:
            raise DataError(f"the tag {tag!r} is not IOB2; write O, B-TYPE or I-TYPE")
        if mark == "I" and spans and spans[-1][1] == number and spans[-1][2] == kind:
            spans[-1] = (spans[-1][0], number + 1, kind)
        else:
            spans.append((number, number + 1, kind))
    return spans


def tag_tokens(tokens: Sequence[str], entities: Sequence[Mapping[str, str]]) -> list[str]:
    """Find named entities in a sentence again and write them as IOB2 tags.

    Each entity takes its first place that no earlier one took, longest entities first; what is not in the sentence,
    word by word, is left out (a model may invent it).

    Args:
        tokens: the sentence.
        entities: `{"text", "type"}` records, as `read_entities` gives them.

    Returns:
        One tag a token.
    """
    tags = ["O"] * len(tokens)
    for entity in sorted(entities, key=lambda entity: -len(entity["text"])):
        wanted = "".join(entity["text"].split()).casefold()
        for start, end in _places(tokens, wanted):
            if all(tag == "O" for tag in tags[start:end]):
                tags[start:end] = [f"B-{entity['type']}"] + [f"I-{entity['type']}"] * (end - start - 1)
                break
    return tags


def read_entities(rule: str, text: str, types: Sequence[str]) -> list[dict[str, str]]:
    """Read the entities that a model wrote.

    Args:
        rule: `entity-list` for "Ann Lee (person); Rome (location)", `entity-markup` for
            "[Ann Lee | person] lives in [Rome | location]"; full-width marks count as plain ones.
        text: generated text; its first line counts.
        types: the types asked for; entries of other types are left out.

    Returns:
        `{"text", "type"}` records in order.
    """
    assert rule in ("entity-list", "entity-markup"), f"{rule} reads no entities"
    line = next(iter(text.strip().splitlines()), "").translate(_PLAIN_MARKS)
    pairs = _listed(line) if rule == "entity-list" else _marked(line)
    named = {kind.casefold(): kind for kind in types}
    return [{"text": words, "type": named[kind]} for words, kind in pairs if words and kind in named]


_PLAIN_MARKS = str.maketrans("；（）【】｜", ";()[]|")


def _listed(line: str) -> list[tuple[str, str]]:
    entries = [entry.strip().rstrip("。.").rpartition("(") for entry in line.split(";")]
    return [(words.strip(), kind[:-1].strip().casefold()) for words, _, kind in entries if kind.endswith(")")]


def _marked(line: str) -> list[tuple[str, str]]:
    insides = [piece.partition("]")[0].rpartition("|") for piece in line.split("[")[1:] if "]" in piece]
    return [(words.strip(), kind.strip().casefold()) for words, bar, kind in insides if bar]


def _relation_fields(text: str, head: Sequence[int], tail: Sequence[int]) -> dict[str, Any]:
    for name, span in (("head", head), ("tail", tail)):
        # A content-free row has an empty text, and spans that hold all of it.
        if len(span) != 2 or not 0 <= span[0] <= span[1] <= len(text) or (text and span[0] == span[1]):
            raise DataError(f"{name} = {list(span)} is no span of {len(text)} characters; write [start, end)")
    marked = _marked_text(text, (head, tail)) if text else "<e1></e1><e2></e2>"
    return {"head_text": text[head[0] : head[1]], "tail_text": text[tail[0] : tail[1]], "marked": marked}


def _marked_text(text: str, spans: Sequence[Sequence[int]]) -> str:
    """Put <e1>, </e1>, ... around spans, the longer one outside where one holds the other."""
    marks = []
    for number, (start, end) in enumerate(spans, start=1):
        # At one place: ends before beginnings; of two beginnings the longer span's first, of two ends its last.
        marks.append((start, 1, -end, number, f"<e{number}>"))
        marks.append((end, 0, -start, -number, f"</e{number}>"))
    marked = ""
    done = 0
    for place, *_, mark in sorted(marks):
        marked += text[done:place] + mark
        done = place
    return marked + text[done:]


def _places(tokens: Sequence[str], wanted: str) -> list[tuple[int, int]]:
    """Return the token spans whose text without spaces is `wanted`."""
    places = []
    for start in range(len(tokens)):
        text = ""
        for end in range(start, len(tokens)):
            text += tokens[end].casefold()
            if text == wanted:
                places.append((start, end + 1))
            if len(text) >= len(wanted):
                break
    return places


def _is_wide(character: str) -> bool:
    return bool(character) and unicodedata.east_asian_width(character) in ("W", "F")
