"""Answers to questions: exact match and F1 as the evaluation scripts of SQuAD and CMRC 2018 compute them.

A question without an answer has no gold answers, and is right when the prediction is empty too (SQuAD 2.0). Both
measures are the best over the gold answers, in [0, 1] (the scripts print per cent).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.measures import Measures, mean_of
from chinchilla_lm.metrics.segmentation import base_language

# SQuAD removes English articles; the others are MLQA's (Lewis et al. 2020, its evaluation script).
_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
}
_ASCII_PUNCTUATION = frozenset(string.punctuation)
# The list of CMRC 2018's script. It has no ASCII comma, full stop or quotation mark.
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CMRC_CHINESE = re.compile("[\u4e00-\u9fa5]")
# Words, numbers with a point inside, and single marks. Differs: the script asks NLTK's word_tokenize, which needs data.
_LATIN_WORD = re.compile(r"\w+(?:[.,'’]\w+)*|[^\w\s]")


def measure_answers(
    predicted_texts: Sequence[str], gold_answer_lists: Sequence[Sequence[str]], language: str = "en"
) -> Measures:
    """Measure answer texts.

    Args:
        predicted_texts: one a question; "" says that there is no answer.
        gold_answer_lists: the accepted answers of each question; empty where it has none.
        language: "zh" scores as CMRC 2018 does, all others as SQuAD, with that language's articles left out.

    Returns:
        f1 (primary) and exact_match; by class "answer" and "no answer" where both occur.

    Raises:
        DataError: no rows.

    Source: Rajpurkar et al. 2016 and 2018 (evaluate-v2.0.py); Cui et al. 2019 (cmrc2018_evaluate.py, v5).
    """
    assert len(predicted_texts) == len(gold_answer_lists), f"{len(predicted_texts)} for {len(gold_answer_lists)} rows"
    if not gold_answer_lists:
        raise DataError("0 rows cannot be measured; give a file with at least one row")
    exact_n, f1_n = [], []
    for predicted, golds in zip(predicted_texts, gold_answer_lists, strict=True):
        accepted = list(golds) or [""]
        exact_n.append(max(exact_match(predicted, gold, language) for gold in accepted))
        f1_n.append(max(answer_f1(predicted, gold, language) for gold in accepted))
    measures = mean_of({"f1": f1_n, "exact_match": exact_n}, "f1")
    kinds = ["answer" if any(golds) else "no answer" for golds in gold_answer_lists]
    if len(set(kinds)) > 1:
        for kind in sorted(set(kinds)):
            rows = [row for row, name in enumerate(kinds) if name == kind]
            measures.per_class[kind] = {
                "f1": sum(f1_n[row] for row in rows) / len(rows),
                "exact_match": sum(exact_n[row] for row in rows) / len(rows),
                "support": float(len(rows)),
            }
    return measures


def order_by_agreement(answers: Sequence[str], language: str = "en") -> list[int]:
    """Order the answers that several people gave to one question: the one that the others agree with most comes first.

    Args:
        answers: of one question, repeated where several people gave the same.
        language: as for `measure_answers`.

    Returns:
        Places in `answers`, by falling sum of F1 over all of them; equals keep their order.
    """
    if len(set(answers)) < 2:
        return list(range(len(answers)))
    sums = [sum(answer_f1(each, other, language) for other in answers) for each in answers]
    return sorted(range(len(answers)), key=lambda place: -sums[place])


def exact_match(predicted: str, gold: str, language: str = "en") -> float:
    """Return 1.0 where two answers are the same after normalisation, else 0.0."""
    if base_language(language) == "zh":
        return float(_without_cmrc_punctuation(predicted) == _without_cmrc_punctuation(gold))
    return float(normalise_answer(predicted, language) == normalise_answer(gold, language))


def answer_f1(predicted: str, gold: str, language: str = "en") -> float:
    """Return F1 of shared words (SQuAD), or of the longest common run of characters (CMRC)."""
    if base_language(language) == "zh":
        first, second = _cmrc_units(gold), _cmrc_units(predicted)
        shared = _longest_run(first, second)
    else:
        first, second = normalise_answer(gold, language).split(), normalise_answer(predicted, language).split()
        shared = sum((Counter(first) & Counter(second)).values())
    if not first or not second:  # no answer: right only if both are empty
        return float(first == second)
    return 2 * shared / (len(first) + len(second))


def normalise_answer(text: str, language: str = "en") -> str:
    """Lower the case, drop ASCII punctuation and articles, and join words by one space (SQuAD's normalisation)."""
    bare = "".join(character for character in text.lower() if character not in _ASCII_PUNCTUATION)
    articles = _ARTICLES.get(base_language(language))
    if articles:
        bare = re.sub(articles, " ", bare)
    return " ".join(bare.split())


def _without_cmrc_punctuation(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_PUNCTUATION)


def _cmrc_units(text: str) -> list[str]:
    """Return Chinese characters one by one, and the words of other scripts."""
    units, other = [], ""
    for character in _without_cmrc_punctuation(text):
        if _CMRC_CHINESE.match(character):
            units += [*_LATIN_WORD.findall(other), character]
            other = ""
        else:
            other += character
    return units + _LATIN_WORD.findall(other)


def _longest_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common contiguous run."""
    longest, previous = 0, [0] * (len(second) + 1)
    for unit in first:
        current = [0] * (len(second) + 1)
        for place, other in enumerate(second, start=1):
            if unit == other:
                current[place] = previous[place - 1] + 1
        longest, previous = max(longest, *current), current
    return longest
