"""Small changes of a text that keep its label: slips of the keyboard, and synonyms from a list.

A slip swaps, drops, doubles or mistypes one inner letter of a word; in Chinese, which people read through such slips
too, two neighbouring characters change places. Numbers, short words, tagged entities and related entities stay. What a
task's label depends on letter by letter (a translation, a summary, an answer) is never touched.
It draws from the seed alone. Source of the operations: Gao et al. 2018 (DeepWordBug), Wei and Zou 2019 (EDA).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.data.labelled import Row, read_rows

# At most this share of the words of a text changes, and at least one word (the attacks of the literature change 15 to
# 20 % and are still read as meant).
SHARE = 0.15
# A word needs two inner letters to swap.
_LEAST_LETTERS = 4
_UNITS = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)?|[\u4e00-\u9fff]{2,}")
_HAN = re.compile(r"[\u4e00-\u9fff]")
# The letters around each on a QWERTY keyboard.
_NEIGHBOURS = {
    "a": "qwsz", "b": "vghn", "c": "xdfv", "d": "serfcx", "e": "wsdr", "f": "drtgvc", "g": "ftyhbv", "h": "gyujnb",
    "i": "ujko", "j": "huikmn", "k": "jiolm", "l": "kop", "m": "njk", "n": "bhjm", "o": "iklp", "p": "ol",
    "q": "wa", "r": "edft", "s": "awedxz", "t": "rfgy", "u": "yhji", "v": "cfgb", "w": "qase", "x": "zsdc", "y": "tghu",
    "z": "asx",
}  # fmt: skip
_TRIES = 5

Synonyms = Mapping[str, Sequence[str]]


def perturb_rows(
    task: str, rows: Sequence[Row], *, count: int, seed: int, synonyms: Synonyms | None = None
) -> list[Row]:
    """Make new rows with the labels of old ones.

    Args:
        task: text-classification, token-classification, relation-extraction, question-answering or multiple-choice.
        rows: canonical.
        count: how many are wanted; rows take turns, shuffled.
        seed: of all draws.
        synonyms: word -> words of the same meaning, tried before slips.

    Returns:
        At most `count` rows, each different from its original and from the others; those without a changeable word
        give none.

    Raises:
        ConfigError: a task whose labels such changes do not keep.
    """
    if task not in _CHANGES:
        raise ConfigError(
            f"{task} rows cannot be perturbed: the target would no longer fit; choose among {', '.join(_CHANGES)}"
        )
    generator = random.Random(seed)
    found: list[Row] = []
    seen = {repr(row) for row in rows}
    for _ in range(_TRIES):
        order = list(range(len(rows)))
        generator.shuffle(order)
        for number in order:
            if len(found) >= count:
                return found
            changed = _CHANGES[task](rows[number], generator, synonyms or {})
            if changed is not None and repr(changed) not in seen:
                seen.add(repr(changed))
                found.append({key: value for key, value in changed.items() if key != "id"})
    return found


def perturb_text(
    text: str, generator: random.Random, synonyms: Synonyms | None = None, fixed: Sequence[Sequence[int]] = ()
) -> tuple[str, list[list[int]]] | None:
    """Change some words of a text.

    Args:
        text: any.
        generator: draws.
        synonyms: tried before slips.
        fixed: [start, end) of parts that stay as they are.

    Returns:
        (the new text, where the fixed parts are now), or None where nothing can change.
    """
    units = [
        unit
        for unit in _UNITS.finditer(text)
        if _is_changeable(unit[0]) and not any(unit.start() < end and start < unit.end() for start, end in fixed)
    ]
    if not units:
        return None
    chosen = generator.sample(units, min(len(units), generator.randint(1, max(1, round(SHARE * len(units))))))
    moved = [list(span) for span in fixed]
    for unit in sorted(chosen, key=lambda one: -one.start()):
        word = _change(unit[0], generator, synonyms or {})
        text = text[: unit.start()] + word + text[unit.end() :]
        for span in moved:
            if span[0] >= unit.end():
                span[0] += len(word) - len(unit[0])
                span[1] += len(word) - len(unit[0])
    return text, moved


def read_synonyms(source: str | Path) -> dict[str, list[str]]:
    """Read synonyms.

    Args:
        source: rows of {word, senses: [[...], ...], antonyms?} (WordNet as JSON lines; the first sense counts), or of
            two columns {word, synonym}.

    Returns:
        lower-case word -> single words, antonyms left out.

    Raises:
        DataError: the source cannot be read.
        ConfigError: rows of another form.
    """
    found: dict[str, list[str]] = {}
    for row in read_rows(source):
        if "word" in row and "senses" in row:
            words = row["senses"][0] if row["senses"] else []
            words = [word for word in words if word not in (row.get("antonyms") or [])]
        elif "word" in row and "synonym" in row:
            words = [row["synonym"]]
        else:
            names = ", ".join(map(repr, row))
            raise ConfigError(f"{source} has {names}; give rows of word and senses, or word and synonym")
        kept = [word for word in words if word.lower() != row["word"].lower() and " " not in word]
        if kept:
            found.setdefault(row["word"].lower(), []).extend(kept)
    return found


def _is_changeable(word: str) -> bool:
    return bool(_HAN.match(word)) or len(word) >= _LEAST_LETTERS


def _change(word: str, generator: random.Random, synonyms: Synonyms) -> str:
    known = synonyms.get(word.lower())
    if known and generator.random() < 0.5:
        chosen = generator.choice(list(known))
        return chosen.capitalize() if word[0].isupper() else chosen
    if _HAN.match(word):
        place = generator.randrange(len(word) - 1)
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    place = generator.randrange(1, len(word) - 2)  # first and last letter stay: readers need them most
    kind = generator.randrange(4)
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == 1:
        return word[:place] + word[place + 1 :]
    if kind == 2:
        return word[:place] + word[place] + word[place:]
    near = _NEIGHBOURS.get(word[place].lower())
    return word[:place] + (generator.choice(near) if near else word[place]) + word[place + 1 :]


def _change_field(name: str) -> Callable[[Row, random.Random, Synonyms], Row | None]:
    def change(row: Row, generator: random.Random, synonyms: Synonyms) -> Row | None:
        changed = perturb_text(row[name], generator, synonyms)
        return None if changed is None else {**row, name: changed[0]}

    return change


def _change_tokens(row: Row, generator: random.Random, synonyms: Synonyms) -> Row | None:
    """Change words outside of entities; the number of tokens stays."""
    places = [
        place
        for place, (token, tag) in enumerate(zip(row["tokens"], row["tags"], strict=True))
        if tag == "O" and _UNITS.fullmatch(token) and _is_changeable(token)
    ]
    if not places:
        return None
    tokens = list(row["tokens"])
    for place in generator.sample(places, min(len(places), max(1, round(SHARE * len(places))))):
        tokens[place] = _change(tokens[place], generator, synonyms)
    return {**row, "tokens": tokens}


def _change_relation(row: Row, generator: random.Random, synonyms: Synonyms) -> Row | None:
    changed = perturb_text(row["text"], generator, synonyms, (row["head"], row["tail"]))
    if changed is None:
        return None
    text, (head, tail) = changed
    return {**row, "text": text, "head": head, "tail": tail}


_CHANGES: dict[str, Callable[[Row, random.Random, Synonyms], Row | None]] = {
    "text-classification": _change_field("text"),
    "token-classification": _change_tokens,
    "relation-extraction": _change_relation,
    "question-answering": _change_field("question"),
    "multiple-choice": _change_field("question"),
}
