"""Translations and summaries against references: BLEU and chrF by sacreBLEU, ROUGE by rouge-score.

Symbols: n rows, k statistics. The libraries count; BLEU and chrF are then computed from sums of their counts, so that
rows can be drawn again without counting again. Both packages are imported when a measure is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.measures import Floats, Formula, Measures, divide, mean_of
from chinchilla_lm.metrics.segmentation import base_language, split_units

_ORDER = 4  # of BLEU's n-grams (Papineni et al. 2002)
_CHARACTER_ORDER = 6  # of chrF's (Popovic 2015)
_BETA = 2  # chrF2, as in WMT
# sacreBLEU's tokenizers; its Japanese and Korean ones need packages of their own.
_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char", "lo": "char", "km": "char", "my": "char"}
_ROUGE_NAMES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}

References = Sequence[str] | Sequence[Sequence[str]]


def measure_translation(predicted: Sequence[str], references: References, language: str = "en") -> Measures:
    """Measure translations, in sacreBLEU's unit of 0 to 100.

    Args:
        predicted: n translations.
        references: one or several a row.
        language: of the target; Chinese is counted on characters (sacreBLEU's "zh"), the scripts of Japanese, Korean
            and South-East Asia too ("char"), all others with "13a".

    Returns:
        bleu (primary; corpus, case-sensitive, smoothing "exp") and chrf (chrF2). A row's own score is its chrF.

    Raises:
        DataError: no rows, a row without reference, or sacrebleu is absent.

    Source: Post 2018; Popovic 2015.
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF  # an optional package  # pyright: ignore[reportPrivateImportUsage]
    except ImportError:
        raise DataError("BLEU needs the package sacrebleu; pip install 'chinchilla-lm[tune]'") from None
    streams = _as_streams(_as_lists(predicted, references))
    bleu: Any = BLEU(tokenize=_TOKENIZERS.get(base_language(language), "13a"))
    chrf: Any = CHRF()
    # What the package's own bootstrap uses; a test compares with its public corpus_score.
    bleu_nk = np.array(bleu._extract_corpus_statistics(list(predicted), streams), dtype=np.float64)
    chrf_nk = np.array(chrf._extract_corpus_statistics(list(predicted), streams), dtype=np.float64)
    width = bleu_nk.shape[1]
    return Measures(
        values={
            "bleu": float(bleu._aggregate_and_compute(bleu_nk.astype(int).tolist()).score),
            "chrf": float(chrf._aggregate_and_compute(chrf_nk.astype(int).tolist()).score),
        },
        primary="bleu",
        scores_n=tuple(_chrf(chrf_nk).tolist()),
        counts_nk=np.concatenate((bleu_nk, chrf_nk), axis=1),
        formulas={
            "bleu": Formula(tuple(range(width)), _bleu),
            "chrf": Formula(tuple(range(width, width + chrf_nk.shape[1])), _chrf),
        },
    )


def measure_summary(predicted: Sequence[str], references: References, language: str = "en") -> Measures:
    """Measure summaries by ROUGE F1 in [0, 1], for each measure the best of the references.

    Args:
        predicted: n summaries.
        references: one or several a row.
        language: "en" counts as rouge-score does (ASCII words, Porter stems); all others count words of any script,
            and single characters where there are no spaces (Chinese).

    Returns:
        rouge_l (primary), rouge_1, rouge_2, rouge_lsum (sentences by line).

    Raises:
        DataError: no rows, a row without reference, or rouge-score is absent.

    Source: Lin 2004.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer  # an optional package
    except ImportError:
        raise DataError("ROUGE needs the package rouge-score; pip install 'chinchilla-lm[tune]'") from None
    golds = _as_lists(predicted, references)
    is_english = base_language(language) == "en"
    scorer: Any = RougeScorer(
        list(_ROUGE_NAMES.values()), use_stemmer=is_english, tokenizer=None if is_english else _UnitTokenizer()
    )
    found: dict[str, list[float]] = {name: [] for name in _ROUGE_NAMES}
    for text, accepted in zip(predicted, golds, strict=True):
        scores = scorer.score_multi(accepted, text)
        for name, library_name in _ROUGE_NAMES.items():
            found[name].append(float(scores[library_name].fmeasure))
    return mean_of(found, "rouge_l")


class _UnitTokenizer:
    """What rouge-score asks for, for scripts that its own tokenizer would drop."""

    def tokenize(self, text: str) -> list[str]:
        return split_units(text)


def _as_lists(predicted: Sequence[str], references: References) -> list[list[str]]:
    assert len(predicted) == len(references), f"{len(predicted)} predictions for {len(references)} rows"
    if not references:
        raise DataError("0 rows cannot be measured; give a file with at least one row")
    golds = [[given] if isinstance(given, str) else list(given) for given in references]
    for number, accepted in enumerate(golds, start=1):
        if not accepted:
            raise DataError(f"row {number} has no reference; give each row at least one, or remove it")
    return golds


def _as_streams(golds: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Return references as sacreBLEU wants them: the first of every row, the second of every row, ..."""
    most = max(map(len, golds))
    return [[accepted[place] if place < len(accepted) else None for accepted in golds] for place in range(most)]


def _bleu(sums: Floats) -> Floats:
    """Return BLEU of sums (length, reference length, hits by order, n-grams by order); sacreBLEU's compute_bleu."""
    length, reference = sums[..., 0], sums[..., 1]
    hits, total = sums[..., 2 : 2 + _ORDER], sums[..., 2 + _ORDER :]
    misses = np.cumsum(hits == 0, axis=-1)  # smoothing "exp": the m-th order without a hit has 1 / 2^m of a hit
    precision = divide(np.where(hits == 0, 0.5**misses, hits), total)
    is_scored = (hits > 0).any(axis=-1) & (precision > 0).all(axis=-1)
    log_mean = np.log(np.where(precision > 0, precision, 1.0)).mean(axis=-1)
    brevity = np.where(length < reference, np.exp(1 - divide(reference, np.maximum(length, 1))), 1.0)
    return np.where(is_scored, 100 * brevity * np.exp(log_mean), 0.0)


def _chrf(sums: Floats) -> Floats:
    """Return chrF2 of sums (n-grams, reference n-grams, hits) by order; sacreBLEU's _compute_f_score."""
    by_order = sums.reshape(*sums.shape[:-1], _CHARACTER_ORDER, 3)
    found, wanted, hits = by_order[..., 0], by_order[..., 1], by_order[..., 2]
    counts = (found > 0) & (wanted > 0)
    orders = counts.sum(axis=-1)
    precision = divide((divide(hits, found) * counts).sum(axis=-1), orders)
    recall = divide((divide(hits, wanted) * counts).sum(axis=-1), orders)
    return 100 * divide((1 + _BETA**2) * precision * recall, _BETA**2 * precision + recall)
