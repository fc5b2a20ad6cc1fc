"""Added rows: they keep what the label hangs on, agree with the filter, repeat nobody, and are never too many."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.augmentation import Augmentation, keep_agreeing, tune_augmented
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.perturbation import perturb_rows, perturb_text, read_synonyms
from chinchilla_lm.tune.splits import Splits

from .conftest import write_jsonl


@pytest.fixture
def config(configure: Callable[..., TuneConfig]) -> TuneConfig:
    return configure(validation=None)


def test_a_perturbed_text_is_read_as_the_same_words() -> None:
    text = "An utterly wonderful film about 1984 and the unforgettable people of Oceania."
    for seed in range(50):
        changed = perturb_text(text, random.Random(seed))
        assert changed is not None
        old, new = text.split(), changed[0].split()
        differing = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
        assert len(differing) <= 2  # 15 % of eight longer words, and one at least
        for before, after in differing:
            assert before[0] == after[0]
            assert abs(len(before) - len(after)) <= 1
        assert "1984" in new


def test_chinese_characters_change_places() -> None:
    changed = perturb_text("研究表明汉字的顺序并不影响阅读", random.Random(1))
    assert changed is not None
    assert changed[0] != "研究表明汉字的顺序并不影响阅读"
    assert Counter(changed[0]) == Counter("研究表明汉字的顺序并不影响阅读")
    assert perturb_text("1 + 1 = 2", random.Random(0)) is None


def test_entities_stay_where_and_what_they_are() -> None:
    text = "The wonderful company Microsoft acquired the little startup Activision yesterday morning"
    row = {"text": text, "head": [22, 31], "tail": [60, 70], "label": "bought"}
    for changed in perturb_rows("relation-extraction", [row], count=4, seed=0):
        assert changed["text"][slice(*changed["head"])] == "Microsoft"
        assert changed["text"][slice(*changed["tail"])] == "Activision"
        assert changed["text"] != text
    tagged = {"tokens": ["yesterday", "Angela", "Merkel", "visited"], "tags": ["O", "B-PER", "I-PER", "O"]}
    for changed in perturb_rows("token-classification", [tagged], count=3, seed=0):
        assert changed["tokens"][1:3] == ["Angela", "Merkel"]
        assert len(changed["tokens"]) == 4


def test_perturbed_rows_are_new_seeded_and_at_most_as_many_as_asked(sentiment_rows: list[dict[str, Any]]) -> None:
    rows = perturb_rows("text-classification", sentiment_rows, count=30, seed=5)
    assert len(rows) == 30
    assert rows == perturb_rows("text-classification", sentiment_rows, count=30, seed=5)
    texts = [row["text"] for row in rows]
    assert len(set(texts)) == 30
    assert not set(texts) & {row["text"] for row in sentiment_rows}
    with pytest.raises(ConfigError, match="translation rows cannot be perturbed"):
        perturb_rows("translation", [{"source": "a", "target": "b"}], count=1, seed=0)


def test_synonyms_come_from_the_first_sense_without_antonyms(tmp_path: Path) -> None:
    rows = [
        {
            "word": "Wonderful",
            "pos": "a",
            "senses": [["marvelous", "awful", "very good"], ["x"]],
            "antonyms": ["awful"],
        },
        {"word": "film", "pos": "n", "senses": [["movie"]]},
    ]
    synonyms = read_synonyms(write_jsonl(tmp_path / "synonyms.jsonl", rows))
    assert synonyms == {"wonderful": ["marvelous"], "film": ["movie"]}
    texts = {perturb_text("Wonderful", random.Random(seed), synonyms)[0] for seed in range(30)}  # type: ignore[index]
    assert "Marvelous" in texts
    with pytest.raises(ConfigError, match="word and senses"):
        read_synonyms(write_jsonl(tmp_path / "other.jsonl", [{"a": 1}]))


def test_the_shared_synonyms_are_read(shared_data: Path) -> None:
    assert "movie" in read_synonyms(shared_data / "attack-wordnet" / "synonyms.jsonl.gz")["film"]


def test_kept_texts_agree_are_sure_and_repeat_nothing() -> None:
    real = [{"text": f"good {n}", "label": "positive"} for n in range(6)]
    real += [{"text": f"bad {n}", "label": "negative"} for n in range(2)]
    splits = Splits(
        train=real, validation=[{"text": "Held out!", "label": "positive"}], test=[], evaluated_on="test", counts={}
    )

    def text(words: str, label: str, predicted: str, probability: float) -> dict[str, Any]:
        return {"text": words, "label": label, "predicted": predicted, "probability": probability}

    offered = [text(f"fine {n}", "positive", "positive", 0.8 + n / 100) for n in range(9)]
    offered += [
        text("GOOD 1", "positive", "positive", 0.99),
        text("held out", "positive", "positive", 0.99),
        text("fine 3", "positive", "positive", 0.99),
        text("poor", "negative", "positive", 0.99),
        text("meh", "negative", "negative", 0.6),
        text("awful", "negative", "negative", 0.9),
    ]
    kept = keep_agreeing(offered, splits, 8)
    assert Counter(row["label"] for row in kept) == {"positive": 6, "negative": 1}
    assert {"text": "awful", "label": "negative"} in kept
    assert {row["text"].lower() for row in kept}.isdisjoint({"good 1", "held out", "poor", "meh"})
    assert len(keep_agreeing(offered, splits, 2)) == 2


@pytest.mark.parametrize("kind", ["perturb", "generate"])
def test_a_run_with_added_rows_is_an_ordinary_run(config: TuneConfig, kind: Any) -> None:
    result = tune_augmented(config, Augmentation(kind=kind, share=0.5))
    found = result.record["augmentation"]
    assert found["real"] == 36
    assert found["added"] <= found["wanted"] == 18
    assert result.record["rows"]["train"]["used"] == found["real"] + found["added"]
    assert result.record["rows"]["validation"]["used"] == 4
    assert result.record["rows"]["test"]["used"] == 40
    lines = (result.folder / "augmentation" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 36 + found["added"]
    if kind == "generate":
        assert found["offered"] <= 3 * 18
        offered = (result.folder / "augmentation" / "offered.jsonl").read_text(encoding="utf-8").splitlines()
        assert {json.loads(line)["label"] for line in offered} <= {"positive", "negative"}


def test_more_added_rows_than_real_ones_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"share = 1.5 must lie in \(0, 1\]"):
        Augmentation(kind="perturb", share=1.5)
