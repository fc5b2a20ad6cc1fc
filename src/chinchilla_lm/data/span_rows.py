"""Rows whose labels point into a text: tagged tokens, related entities, answers in a context."""

from __future__ import annotations

import re
from typing import Any

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.row_fields import Fields, Row

_TOKENS = ("tokens", "words", "token", "sentence")
_TAGS = ("tags", "ner_tags", "labels", "ner", "pos_tags", "upos", "chunk_tags", "entities")
_RELATION = ("label", "relation", "label_text", "relation_type")
_MARKS = re.compile(r"</?e[12]>")


def token_row(fields: Fields) -> Row:
    """Return {tokens, tags}; the tags' scheme is settled over all rows later."""
    tokens = fields.texts("tokens", *_TOKENS)
    if not fields.is_labelled:
        return {"tokens": tokens}
    values = fields.value("tags", *_TAGS)
    if isinstance(values, str):
        values = fields.parse_list(values, "tags")
    if isinstance(values, list) and any(isinstance(tag, int) for tag in values):
        raise DataError(
            f"{fields.place}: 'tags' are numbers, whose names are not in the file; write B-TYPE, I-TYPE and O"
            " (sources hf:NAME know their names)"
        )
    tags = fields.texts("tags", *_TAGS)
    if len(tokens) != len(tags):
        raise DataError(f"{fields.place} has {len(tokens)} tokens and {len(tags)} tags; give one tag a token")
    return {"tokens": tokens, "tags": tags}


def relation_row(fields: Fields) -> Row:
    """Return {text, head, tail, head_type?, tail_type?, label} from offsets, <e1> marks, TACRED or OpenNRE rows."""
    row = fields.row
    if "head" in row and "tail" in row and isinstance(row["head"], list):
        found: Row = {"text": fields.text("text"), "head": row["head"], "tail": row["tail"]}
        found |= {name: row[name] for name in ("head_type", "tail_type") if row.get(name)}
    elif "e1_start" in row and "e2_start" in row:
        found = {"text": fields.text("text", "text", "sentence")}
        for name, mention in (("head", "e1"), ("tail", "e2")):
            start = fields.as_number(row[f"{mention}_start"], f"{mention}_start")
            found[name] = [start, start + len(fields.text(mention))]
            if not found["text"].startswith(row[mention], start):
                raise DataError(f"{fields.place}: {row[mention]!r} does not begin at {start}; correct {mention}_start")
    elif "subj_start" in row and "obj_start" in row:
        found = _from_tacred(fields)
    elif isinstance(row.get("h"), dict) and isinstance(row.get("t"), dict):
        found = _from_opennre(fields)
    else:
        found = _from_marks(fields)
    for name in ("head", "tail"):
        found[name] = _checked_span(fields, found["text"], found[name], name)
    if fields.is_labelled:
        found["label"] = fields.as_label(fields.value("label", *_RELATION), "label")
    return found


def question_row(fields: Fields) -> Row:
    """Return {question, context?, answers} from SQuAD, lists, or one answer a row; start only where it is known."""
    found: Row = {"question": fields.text("question", "question", "query")}
    if fields.is_mapped("context") or fields.row.get("context") or fields.row.get("passage"):
        found["context"] = fields.text("context", "context", "passage")
    if not fields.is_labelled:
        return found
    value = fields.value("answers", "answers", "answer")
    if isinstance(value, str) and value.startswith(("[", "{")):
        value = fields.parse_list(value, "answers")
    found["answers"] = []
    for text, start in _answer_pairs(fields, value):
        answer: Row = {"text": fields.as_text(text, "answers")}
        if start is not None and start >= 0 and "context" in found:
            if not found["context"].startswith(text, start):
                raise DataError(
                    f"{fields.place}: the answer {text[:40]!r} does not begin at character {start} of the context;"
                    " correct answer_start, or leave it out"
                )
            answer["start"] = start
        found["answers"].append(answer)
    return found


def _answer_pairs(fields: Fields, value: Any) -> list[tuple[Any, int | None]]:
    if isinstance(value, str):
        return [(value, None)]
    if isinstance(value, dict):  # SQuAD in the hub's form
        texts = value.get("text", [])
        starts = value.get("answer_start") or [None] * len(texts)
        if len(texts) != len(starts):
            raise DataError(f"{fields.place} has {len(texts)} answers and {len(starts)} starts; give one each")
        return list(zip(texts, starts, strict=True))
    if not isinstance(value, list):
        raise DataError(f"{fields.place}: 'answers' is {type(value).__name__}; write a list of texts, or SQuAD's form")
    pairs: list[tuple[Any, int | None]] = []
    for entry in value:
        if isinstance(entry, dict):
            pairs.append((entry.get("text"), entry.get("start", entry.get("answer_start"))))
        else:
            pairs.append((entry, None))
    return pairs


def _from_marks(fields: Fields) -> Row:
    names = [name for name in ("marked", "sentence", "text") if "<e1>" in str(fields.row.get(name, ""))]
    if not names:
        known = ", ".join(map(repr, list(fields.row)[:10]))
        raise DataError(
            f"{fields.place} has no entities among {known}; give text, head [start, end) and tail [start, end), or"
            " <e1>...</e1> and <e2>...</e2> in the text"
        )
    marked = str(fields.row[names[0]])
    spans: dict[str, int] = {}
    text, last = "", 0
    for mark in _MARKS.finditer(marked):
        text += marked[last : mark.start()]
        last = mark.end()
        spans[mark[0]] = len(text)
    if len(spans) != 4:
        raise DataError(
            f"{fields.place} has only the marks {sorted(spans)}; write <e1>...</e1> and <e2>...</e2> once each"
        )
    text += marked[last:]
    return {"text": text, "head": [spans["<e1>"], spans["</e1>"]], "tail": [spans["<e2>"], spans["</e2>"]]}


def _from_tacred(fields: Fields) -> Row:
    """Read word offsets whose ends are inclusive."""
    tokens = fields.texts("tokens", "token", "tokens")
    found: Row = {"text": " ".join(tokens)}
    for name, entity in (("head", "subj"), ("tail", "obj")):
        first = fields.as_number(fields.value(f"{entity}_start"), f"{entity}_start")
        last = fields.as_number(fields.value(f"{entity}_end"), f"{entity}_end")
        found[name] = _characters(fields, tokens, first, last + 1)
        if fields.row.get(f"{entity}_type"):
            found[f"{name}_type"] = str(fields.row[f"{entity}_type"])
    return found


def _from_opennre(fields: Fields) -> Row:
    """Read {h: {pos: [start, end), type?}, t: ...}; offsets count characters of a text, or words of tokens."""
    has_text = isinstance(fields.row.get("text"), str)
    tokens = [] if has_text else fields.texts("tokens", "token", "tokens")
    found: Row = {"text": fields.text("text") if has_text else " ".join(tokens)}
    for name, entity in (("head", "h"), ("tail", "t")):
        pair = fields.row[entity].get("pos")
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{fields.place}: {entity!r} has no 'pos' of [start, end); add it")
        found[name] = pair if has_text else _characters(fields, tokens, pair[0], pair[1])
        if fields.row[entity].get("type"):
            found[f"{name}_type"] = str(fields.row[entity]["type"])
    return found


def _characters(fields: Fields, tokens: list[str], first: int, after: int) -> list[int]:
    if not 0 <= first < after <= len(tokens):
        raise DataError(
            f"{fields.place}: words {first} to {after} are not among its {len(tokens)}; correct the offsets"
        )
    start = sum(len(token) + 1 for token in tokens[:first])
    return [start, start + len(" ".join(tokens[first:after]))]


def _checked_span(fields: Fields, text: str, span: Any, name: str) -> list[int]:
    if not isinstance(span, list | tuple) or len(span) != 2 or not all(isinstance(end, int) for end in span):
        raise DataError(f"{fields.place}: {name!r} is {span!r}; write [start, end) in characters")
    if not 0 <= span[0] < span[1] <= len(text):
        raise DataError(
            f"{fields.place}: {name!r} is {list(span)} in a text of {len(text)} characters; correct the offsets"
        )
    return list(span)
