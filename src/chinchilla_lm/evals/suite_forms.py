"""Rows of known suites, as their files or the Hugging Face hub give them, to items: texts and continuations to price.

Wordings are those of lm-evaluation-harness's tasks of the same name. A row of another form raises KeyError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question.

    Attributes:
        pairs: (text, continuation) of each choice; one for a cloze.
        gold: the right one, from 0; None for a cloze.
        lengths: characters and UTF-8 bytes by which a choice's price is divided for the normalised accuracies.
        group: the part of the suite, such as a paradigm of BLiMP; the suite's value is the mean over parts.
    """

    pairs: tuple[Pair, ...]
    gold: int | None
    lengths: tuple[tuple[int, int], ...]
    group: str = ""


def question(row: Mapping[str, Any]) -> Item:
    """ARC and PIQA: "Question: ...", "Answer:"."""
    if "goal" in row:
        text, answers, gold = row["goal"], [row["sol1"], row["sol2"]], int(row["label"])
    else:
        text, answers, gold = _plain(row)
    return _choices(f"Question: {text}\nAnswer:", answers, gold)


def sentence(row: Mapping[str, Any]) -> Item:
    """COPA and OpenBookQA: the choice goes on with the sentence."""
    if "premise" in row:
        connector = {"cause": "because", "effect": "therefore"}[row["question"]]
        answers = [one[0].lower() + one[1:] for one in (row["choice1"], row["choice2"])]
        return _choices(f"{row['premise'].strip()[:-1]} {connector}", answers, int(row["label"]))
    text, answers, gold = _plain(row)
    return _choices(text, answers, gold)


def copa(row: Mapping[str, Any]) -> Item:
    """COPA; the pack's has a comma before the connector, which the harness has not.

    The harness prices "  the choice" with two spaces (its choices bring one, its delimiter another); here it is one.
    """
    if "context" in row:
        row = {**row, "context": row["context"].replace(", therefore", " therefore").replace(", because", " because")}
    return sentence(row)


def commonsense(row: Mapping[str, Any]) -> Item:
    """CommonsenseQA: the options stand in the prompt, the answer is a letter."""
    if isinstance(row["choices"], Mapping):
        answers, gold = list(row["choices"]["text"]), list(row["choices"]["label"]).index(row["answerKey"])
    else:
        answers, gold = list(row["choices"]), int(row["label"])
    letters = "ABCDE"[: len(answers)]
    options = "\n".join(f"{letter}. {answer}" for letter, answer in zip(letters, answers, strict=True))
    return _choices(f"Question: {row['question'].strip()}\n{options}\nAnswer:", list(letters), gold)


def yes_no(row: Mapping[str, Any]) -> Item:
    """BoolQ."""
    if "context" in row:
        passage, _, question = row["context"].removeprefix("Passage: ").rpartition("\nQuestion: ")
        gold = [choice.strip().lower() for choice in row["choices"]][int(row["label"])] == "yes"
        question = question.removesuffix("\nAnswer:").rstrip("?")
    else:
        passage, question, gold = row["passage"], row["question"], bool(row.get("label", row.get("answer")))
    return _choices(f"{passage}\nQuestion: {question}?\nAnswer:", ["no", "yes"], int(gold))


def blank(row: Mapping[str, Any]) -> Item:
    """WinoGrande and WSC273: one continuation after several beginnings ("partial" scoring, Trinh & Le 2018)."""
    if "contexts" in row:
        texts, ending, gold = list(row["contexts"]), row["continuation"], int(row["label"])
    elif "sentence" in row:
        begin, _, ending = row["sentence"].partition("_")
        texts, gold = [begin + row["option1"], begin + row["option2"]], int(row["answer"]) - 1
    else:
        begin = row["text"][: int(row["pronoun_loc"])]
        ending = row["text"][int(row["pronoun_loc"]) + len(row["pronoun"]) :]
        texts, gold = [begin + option for option in row["options"]], int(row["label"])
    ending = ending.strip()
    lengths = ((len(ending), len(ending.encode())),) * len(texts)
    return Item(pairs=tuple((text, " " + ending) for text in texts), gold=gold, lengths=lengths)


def ending(row: Mapping[str, Any]) -> Item:
    """HellaSwag."""
    text = _without_brackets(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    return _choices(text, [_without_brackets(ending) for ending in row["endings"]], int(row["label"]))


def minimal_pair(row: Mapping[str, Any]) -> Item:
    """BLiMP: whole sentences, the good one first; after the start token and a space, as the harness asks them."""
    good, bad = row.get("good") or row["sentence_good"], row.get("bad") or row["sentence_bad"]
    lengths = tuple((len(one), len(one.encode())) for one in (good, bad))
    return Item(pairs=(("", " " + good), ("", " " + bad)), gold=0, lengths=lengths, group=row.get("uid") or row["UID"])


def last_word(row: Mapping[str, Any]) -> Item:
    """LAMBADA: the last word, all of whose tokens must be the likeliest."""
    text, _, word = row["text"].rpartition(" ")
    return Item(pairs=((text, " " + word),), gold=None, lengths=((len(word), len(word.encode())),))


def _choices(text: str, answers: Sequence[str], gold: int, delimiter: str = " ", group: str = "") -> Item:
    if not 0 <= gold < len(answers):
        raise ValueError(f"label {gold} of {len(answers)} choices")
    lengths = tuple((len(answer), len(answer.encode())) for answer in answers)
    return Item(pairs=tuple((text, delimiter + answer) for answer in answers), gold=gold, lengths=lengths, group=group)


def _plain(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    """Question, answers and label of {context, choices, label} or of the hub's {question, choices, answerKey}."""
    if "context" in row:
        return row["context"], list(row["choices"]), int(row["label"])
    question = row.get("question_stem") or row["question"]
    return question, list(row["choices"]["text"]), list(row["choices"]["label"]).index(row["answerKey"].strip())


def _without_brackets(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
