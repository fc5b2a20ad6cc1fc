r"""What a generative task writes before the model's answer, and the answer it expects: text in, text out, no tokens.

A template is one text with {fields} of a row; the last of them stands for the answer and is not written:

    Translate English to Chinese.\nEnglish: {source}\nChinese: {answer}

Everything before the answer is the prompt. Spaces at its end go to the answer's beginning ("Chinese:" + " 你好"): a
tokenizer joins a space with the word after it, so a prompt that ends in a space is one the model never saw in training
(BELLE #337, opencompass #928). A line break stays in the prompt: no common tokenizer joins it with the next word.

A field is replaced by its text only; the text of a field is never read as a template again. Never tokenises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.metrics.answers import order_by_agreement

ANSWER = "answer"
_FIELD = re.compile(r"\{(\w+)\}")
_SPACES_AT_END = re.compile(r"[^\S\r\n]+\Z")

# The wording names the parts of the text and asks in one line: a base model continues it as a form, an instructed one
# follows it. The chosen one is part of the run's record.
_TEMPLATES: Mapping[tuple[str, str], str] = {
    ("translation", "en"): (
        "Translate {source_language} to {target_language}.\n{source_language}: {source}\n{target_language}: {answer}"
    ),
    ("translation", "zh"): (
        "把{source_language}翻译成{target_language}。\n{source_language}：{source}\n{target_language}：{answer}"
    ),
    ("summarization", "en"): "Summarize the text in one sentence.\nText: {document}\nSummary: {answer}",
    ("summarization", "zh"): "用一句话概括下面的文字。\n文字：{document}\n概括：{answer}",
    ("question-answering", "en"): (
        "Answer the question with words of the text.\nText: {context}\nQuestion: {question}\nAnswer: {answer}"
    ),
    ("question-answering", "zh"): "根据文字回答问题。\n文字：{context}\n问题：{question}\n答案：{answer}",
    ("closed-book", "en"): "Question: {question}\nAnswer: {answer}",
    ("closed-book", "zh"): "问题：{question}\n答案：{answer}",
    ("text-generation", "en"): "{prompt}{answer}",
    ("text-generation", "zh"): "{prompt}{answer}",
}
# The field that is shortened from its end where a prompt is too long; what follows it in the template stays.
_CUT_FIELDS: Mapping[str, str] = {"translation": "source", "summarization": "document", "question-answering": "context"}

NO_ANSWER: Mapping[str, str] = {"en": "no answer", "zh": "没有答案"}
"""What a generative model is taught to say where the text holds no answer; read back as the empty answer."""

_LANGUAGE_NAMES: Mapping[str, Mapping[str, str]] = {
    "en": {
        "en": "English", "zh": "Chinese", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian",
        "pt": "Portuguese", "nl": "Dutch", "ru": "Russian", "ja": "Japanese", "ko": "Korean", "ar": "Arabic",
        "": "Source",
    },
    "zh": {
        "en": "英文", "zh": "中文", "de": "德文", "fr": "法文", "es": "西班牙文", "it": "意大利文",
        "pt": "葡萄牙文", "nl": "荷兰文", "ru": "俄文", "ja": "日文", "ko": "韩文", "ar": "阿拉伯文", "": "原文",
    },
}  # fmt: skip
_TARGET_WITHOUT_NAME: Mapping[str, str] = {"en": "Translation", "zh": "译文"}
# Share of letters in a script from which a text counts as written in it; mixed text (names in Latin letters) stays.
_SCRIPT_SHARE = 0.3
_SCRIPTS: Sequence[tuple[str, re.Pattern[str]]] = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u3400-\u9fff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
)


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """How a row becomes a prompt and an answer.

    Attributes:
        text: the template, the answer's place at its very end.
        cut_field: the field to shorten from its end where the prompt is too long; None: the prompt loses its beginning.
        constants: fields that are the same for all rows, such as the languages' names.
    """

    text: str
    cut_field: str | None = None
    constants: Mapping[str, str]

    @property
    def fields(self) -> tuple[str, ...]:
        """The row's fields that it names, in order."""
        names = dict.fromkeys(_FIELD.findall(self.text))
        return tuple(name for name in names if name != ANSWER and name not in self.constants)

    def prompt(self, row: Mapping[str, Any], *, shortened: str | None = None) -> tuple[str, str]:
        """Fill the template for one row.

        Args:
            row: holds every field.
            shortened: replaces the text of `cut_field`.

        Returns:
            (prompt without spaces at its end, those spaces: the answer begins with them).

        Raises:
            DataError: the row lacks a field.
        """
        values = {**self.constants, **{name: _field_text(row, name) for name in self.fields}}
        if shortened is not None:
            assert self.cut_field is not None
            values[self.cut_field] = shortened
        body = self.text.removesuffix("{" + ANSWER + "}")
        return move_spaces(_FIELD.sub(lambda match: values[match[1]], body))


def move_spaces(prompt: str) -> tuple[str, str]:
    """Cut the spaces at the end of a prompt off: (prompt, spaces); joined they are the same text."""
    spaces = _SPACES_AT_END.search(prompt)
    return (prompt, "") if spaces is None else (prompt[: spaces.start()], spaces[0])


def make_template(
    task: str, rows: Sequence[Mapping[str, Any]], *, language: str, written: str | None, codes: tuple[str, str]
) -> PromptTemplate:
    """Choose the template of a task.

    Args:
        task: translation, summarization, question-answering, or text-generation.
        rows: training rows with canonical fields; some of them tell the languages.
        language: of the template's words, "en" or "zh".
        written: the user's own template; a missing {answer} is put at its end, after a space. None: the task's.
        codes: (source, target) language codes such as ("en", "zh") for translation; "" where unknown: found by script.

    Raises:
        ConfigError: the written template has its {answer} before its end, or names no field.
    """
    kind = task
    if task == "question-answering" and not any(row.get("context") for row in rows[:100]):
        kind = "closed-book"
    constants: dict[str, str] = {}
    if task == "translation":
        source, target = (
            code or script_of([_field_text(row, name) for row in rows[:100]])
            for code, name in zip(codes, ("source", "target"), strict=True)
        )
        names = _LANGUAGE_NAMES[language]
        constants["source_language"] = names.get(source, names[""])
        constants["target_language"] = names.get(target or "?", _TARGET_WITHOUT_NAME[language])
    text = _TEMPLATES[kind, language] if written is None else _checked(written)
    cut_field = _CUT_FIELDS.get(kind)
    if cut_field is not None and "{" + cut_field + "}" not in text:
        cut_field = None
    if task == "text-generation" and written is None and any(row.get("controls") for row in rows[:100]):
        text = "{controls}\n" + text
    return PromptTemplate(text=text, cut_field=cut_field, constants=constants)


def answers_of(task: str, row: Mapping[str, Any], language: str) -> list[str]:
    """The texts that a row accepts as answers, the one to learn first: of a question, the one most people agree with.

    Args:
        task: translation, summarization, question-answering or text-generation.
        row: canonical fields.
        language: of the words for "no answer".

    Raises:
        DataError: the row has no answer field.
    """
    if task == "question-answering":
        texts = [one["text"] if isinstance(one, Mapping) else one for one in row.get("answers") or ()]
        agreed = [texts[place] for place in order_by_agreement(texts, language)]
        return list(dict.fromkeys(agreed)) or [NO_ANSWER[language]]
    name = {"translation": "target", "summarization": "summary", "text-generation": "completion"}[task]
    value = row.get(name)
    if value is None and task == "text-generation":
        value = row.get("text")
    if value is None:
        raise DataError(f"a row lacks {name!r}, which {task} needs; name its column in columns, e.g. {name} = ...")
    return [value] if isinstance(value, str) else list(value)


def script_of(texts: Sequence[str]) -> str:
    """Tell the language of texts by their script: "zh", "ja", "ko", "ru", "ar"; "" for Latin and all others."""
    joined = "".join(texts)
    letters = sum(character.isalpha() for character in joined)
    for code, script in _SCRIPTS:
        least = 0.1 if code == "ja" else _SCRIPT_SHARE  # Japanese mixes its own letters with Chinese characters
        if letters and len(script.findall(joined)) / letters >= least:
            return code
    return ""


def stop_texts(answers: Sequence[str]) -> tuple[str, ...]:
    """A line break ends an answer if no answer of the training rows holds one: a model that never learnt to stop does.

    Args:
        answers: of the training rows.
    """
    return () if any("\n" in answer.strip() for answer in answers) else ("\n",)


def _field_text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None and name in ("prompt", "context", "controls"):
        return ""  # may be absent in single rows: a text without a prompt, a question without a text
    if value is None:
        raise DataError(
            f"the template names {{{name}}}, which a row lacks; it has {', '.join(sorted(map(str, row)))}: "
            "change the template, or name the column in columns"
        )
    if isinstance(value, Mapping):  # control fields
        return " ".join(f"<{key}: {entry}>" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def _checked(written: str) -> str:
    place = written.find("{" + ANSWER + "}")
    if place < 0:  # written without its end: a space parts the answer from ASCII text, nothing from Chinese
        has_gap = not written or written[-1].isspace() or not written[-1].isascii()
        written += ("" if has_gap else " ") + "{" + ANSWER + "}"
    elif place != len(written.rstrip()) - len(ANSWER) - 2:
        raise ConfigError(f"template {written!r} must have {{{ANSWER}}} at its end; move what follows it before it")
    written = written.rstrip() if place >= 0 else written
    if not set(_FIELD.findall(written)) - {ANSWER}:
        raise ConfigError(f"template {written!r} must name a field of the rows, such as {{source}}; add one")
    return written
