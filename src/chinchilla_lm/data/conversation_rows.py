"""Rows of several texts: the choices of a question, and the turns of a conversation."""

from __future__ import annotations

import string
from typing import Any

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.row_fields import Fields, Row

_QUESTION = ("question", "question_stem", "context", "goal", "premise", "ctx", "query", "sentence", "prompt")
_CHOICES = ("choices", "options", "endings", "answers")
_ANSWER = ("label", "answerKey", "answer", "gold", "answer_idx", "correct")
# One column a choice: PIQA, COPA, SWAG, spreadsheets.
_CHOICE_COLUMNS = (
    ("sol1", "sol2"),
    ("choice1", "choice2"),
    ("choice0", "choice1"),
    ("option1", "option2"),
    ("ending0", "ending1", "ending2", "ending3"),
    ("A", "B", "C", "D", "E"),
    ("A", "B", "C", "D"),
    ("A", "B", "C"),
    ("A", "B"),
)
_MESSAGES = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "utterances")
_SPEAKER = ("role", "from", "speaker", "author")
_CONTENT = ("content", "value", "text", "utterance")
_ROLES = ("system", "user", "assistant", "tool")
_USERS = frozenset({"user", "human", "customer", "client", "prompter", "usr", "seeker"})
_ASSISTANTS = frozenset({"assistant", "gpt", "bot", "chatbot", "model", "agent", "operator", "recommender", "ai"})


def choice_row(fields: Fields) -> Row:
    """Return {question, choices, label} from lists, the hub's {text, label}, one column a choice, or pairs.

    Minimal pairs {good, bad} and partial evaluation {contexts, continuation} have whole sentences as choices and a
    blank question.
    """
    row = fields.row
    if fields.has("good", "bad") and "choices" not in row:
        return {"question": "", "choices": [fields.text("good"), fields.text("bad")], "label": 0}
    if fields.has("contexts", "continuation"):
        contexts, continuation = fields.texts("contexts"), fields.text("continuation")
        whole = [f"{context} {continuation}" for context in contexts]
        found: Row = {"question": "", "choices": whole, "contexts": contexts, "continuation": continuation}
        names = []
    else:
        choices, names = _choices(fields)
        is_blank = fields.row.get("question") == ""  # whole sentences to choose from, as minimal pairs have
        found = {"question": "" if is_blank else fields.text("question", *_QUESTION), "choices": choices}
    if len(found["choices"]) < 2:
        raise DataError(f"{fields.place} has {len(found['choices'])} choices; give at least two")
    if fields.is_labelled:
        found["label"] = _chosen(fields, fields.value("label", *_ANSWER), found["choices"], names)
    return found


def dialogue_row(fields: Fields) -> Row:
    """Return {messages} from messages, conversations of {from, value}, turns of two speakers, or one instruction."""
    name = next((name for name in _MESSAGES if isinstance(fields.row.get(name), list)), None)
    if fields.is_mapped("messages") or name is not None:
        return {"messages": _messages(fields, fields.value("messages", *_MESSAGES))}
    question = next((name for name in ("instruction", "prompt", "question") if fields.has(name)), None)
    answer = next((name for name in ("response", "output", "completion", "answer") if fields.has(name)), None)
    if question is None or (answer is None and fields.is_labelled):
        known = ", ".join(map(repr, list(fields.row)[:10]))
        raise DataError(
            f'{fields.place} has no \'messages\' among {known}; write [{{"role": "user", "content": ...}}, ...]'
        )
    asked = fields.text(question)
    if str(fields.row.get("input") or "").strip():
        asked = f"{asked}\n{fields.text('input')}"
    messages = [{"role": "user", "content": asked}]
    if answer is not None:
        messages.append({"role": "assistant", "content": fields.text(answer)})
    return {"messages": messages}


def _choices(fields: Fields) -> tuple[list[str], list[str]]:
    """Return the choices, and their own names where they have some."""
    if not fields.is_mapped("choices") and not any(name in fields.row for name in _CHOICES):
        columns = next((columns for columns in _CHOICE_COLUMNS if fields.has(*columns)), None)
        if columns is not None:
            names = list(columns) if columns[0] == "A" else []
            return [fields.text(column) for column in columns], names
    value = fields.value("choices", *_CHOICES)
    if isinstance(value, dict):
        return [fields.as_text(text, "choices") for text in value.get("text", [])], [
            str(name) for name in value["label"]
        ]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        texts = [fields.as_text(entry.get("text"), "choices") for entry in value]
        return texts, [str(entry["label"]) for entry in value if "label" in entry]
    return fields.texts("choices", *_CHOICES), []


def _chosen(fields: Fields, value: Any, choices: list[str], names: list[str]) -> int:
    """Return the index that an index, a letter, a choice's own name or its text means."""
    if isinstance(value, str):
        value = value.strip()
        letters = string.ascii_uppercase[: len(choices)]
        if value in names:
            return names.index(value)
        if value in choices:
            return choices.index(value)
        if len(value) == 1 and value.upper() in letters:
            return letters.index(value.upper())
    index = fields.as_number(value, "label")
    if not 0 <= index < len(choices):
        raise DataError(
            f"{fields.place}: 'label' is {index} and there are {len(choices)} choices; count from 0, or give the letter"
        )
    return index


def _messages(fields: Fields, value: Any) -> list[dict[str, str]]:
    if isinstance(value, str):
        value = fields.parse_list(value, "messages")
    if not isinstance(value, list) or not value:
        raise DataError(
            f'{fields.place}: \'messages\' is no list of turns; write [{{"role": ..., "content": ...}}, ...]'
        )
    if all(isinstance(turn, str) for turn in value):  # DailyDialog: two people in turns
        return [
            {"role": "assistant" if number % 2 else "user", "content": fields.as_text(turn, "messages")}
            for number, turn in enumerate(value)
        ]
    roles: dict[str, str] = {}
    messages = []
    for number, turn in enumerate(value, start=1):
        place = f"{fields.place}, turn {number}"
        if not isinstance(turn, dict):
            raise DataError(f'{place} is a {type(turn).__name__}; write {{"role": ..., "content": ...}}')
        turn_fields = Fields(turn, {}, place)
        key = next((key for key in _SPEAKER if turn.get(key) is not None), None)
        speaker = str(turn_fields.value("role", *_SPEAKER))
        role = _role(speaker.lower(), roles, place, is_role=key in ("role", "from"))
        said = turn_fields.value("content", *_CONTENT)
        is_silent = isinstance(said, str) and not said.strip()  # SGD's test part has such a turn
        messages.append({"role": role, "content": "" if is_silent else turn_fields.as_text(said, "content")})
    if not any(message["content"] for message in messages):
        raise DataError(f"{fields.place}, turn 1: 'content' is blank, as are all; give them text, or delete the row")
    return messages


def _role(speaker: str, roles: dict[str, str], place: str, is_role: bool) -> str:
    """Return a speaker's role; of unknown names the first that speaks is the user, the second the assistant."""
    if is_role and speaker in _ROLES:
        return speaker
    if speaker in _USERS:
        return "user"
    if speaker in _ASSISTANTS or speaker == "system":  # the system of a spoken dialogue answers the user
        return "assistant"
    if speaker not in roles and len(roles) == 2:
        names = ", ".join(map(repr, [*roles, speaker]))
        raise DataError(f"{place}: {names} are three speakers; a dialogue has a user and an assistant, so name them so")
    return roles.setdefault(speaker, "assistant" if roles else "user")
