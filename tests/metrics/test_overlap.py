"""Translations and summaries against sacreBLEU's and rouge-score's public functions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.overlap import measure_summary, measure_translation
from chinchilla_lm.metrics.segmentation import split_units

sacrebleu = pytest.importorskip("sacrebleu")
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")

_words = st.lists(
    st.sampled_from(["the", "cat", "sat", "on", "a", "mat", ",", "and", "then", "it", "slept"]), max_size=9
).map(" ".join)


@settings(max_examples=60)
@given(st.lists(st.tuples(_words, _words), min_size=1, max_size=6))
def test_bleu_and_chrf_are_sacrebleus_and_follow_from_sums(rows: list[tuple[str, str]]) -> None:
    predicted, gold = map(list, zip(*rows, strict=True))
    measures = measure_translation(predicted, gold)
    bleu = sacrebleu.corpus_bleu(predicted, [gold]).score
    chrf = sacrebleu.corpus_chrf(predicted, [gold]).score
    assert measures.value == pytest.approx(bleu)
    assert measures.values["chrf"] == pytest.approx(chrf)
    assert measures.counts_nk is not None
    sums_k = measures.counts_nk.sum(axis=0)
    assert float(measures.formulas["bleu"](sums_k)) == pytest.approx(bleu, abs=1e-9)
    assert float(measures.formulas["chrf"](sums_k)) == pytest.approx(chrf, abs=1e-9)


def test_several_references_and_other_scripts() -> None:
    predicted, gold = ["我喜欢猫。", "他走了"], [["我爱猫。", "我喜欢猫。"], ["他走了。"]]
    streams = [["我爱猫。", "他走了。"], ["我喜欢猫。", None]]
    expected = sacrebleu.corpus_bleu(predicted, streams, tokenize="zh").score
    assert measure_translation(predicted, gold, "zh-CN").value == pytest.approx(expected)
    assert measure_translation(["ネコが好き"], ["ネコが好き"], "ja").value == pytest.approx(100)


@given(st.lists(st.tuples(_words, st.lists(_words, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_rouge_is_the_best_reference_by_rouge_score(rows: list[tuple[str, list[str]]]) -> None:
    predicted, gold = map(list, zip(*rows, strict=True))
    values = measure_summary(predicted, gold).values
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for name, library in (("rouge_1", "rouge1"), ("rouge_l", "rougeL")):
        best = [max(scorer.score(one, text)[library].fmeasure for one in accepted) for text, accepted in rows]
        assert values[name] == pytest.approx(sum(best) / len(best))


def test_chinese_summaries_are_counted_on_characters() -> None:
    measures = measure_summary(["活性艳蓝的应用"], ["双官能团活性艳蓝的应用性能"], "zh")
    assert measures.values["rouge_1"] == pytest.approx(2 * 7 / (7 + 13))
    assert measures.value == pytest.approx(2 * 7 / (7 + 13))
    assert split_units("BERT模型,2018年!") == ["bert", "模", "型", "2018", "年"]
    assert measure_summary(["Größe"], ["größe"], "de").value == 1.0


def test_vowel_signs_and_combining_accents_belong_to_their_word() -> None:
    assert split_units("हिन्दी में लिखा है।") == ["हिन्दी", "में", "लिखा", "है"]
    assert split_units("مُحَمَّد قال") == ["مُحَمَّد", "قال"]
    assert split_units("cafe\u0301 x_y 日本") == ["cafe\u0301", "x", "y", "日", "本"]
    other = measure_summary(["हिन्दी"], ["हन्दा"], language="hi").values
    assert other["rouge_1"] == 0  # the consonants alone are the same


def test_a_row_without_reference_is_refused() -> None:
    with pytest.raises(DataError, match="row 2 has no reference"):
        measure_summary(["a", "b"], [["a"], []])
