"""Rows answered by writing: greedy or sampled text after a prompt, its answer extracted, several samples voted on.

For templates that let the model write (translation, summaries, dialogue, questions, entities, chains of thought), and
for closed label sets when the writing is held to the labels (`is_constrained`). Measures are the task's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.evals.prompted import PromptRows, PromptSettings, demonstration_draws, over_draws
from chinchilla_lm.evals.scorer import Scorer
from chinchilla_lm.generate.batching import Scheduler
from chinchilla_lm.generate.constraint import LabelConstraint
from chinchilla_lm.generate.request import Request
from chinchilla_lm.generate.sampling import Sampling
from chinchilla_lm.metrics import answers as answer_metrics
from chinchilla_lm.metrics import diversity, overlap
from chinchilla_lm.metrics.classification import measure_choices, measure_classification
from chinchilla_lm.metrics.measures import Measures, merge
from chinchilla_lm.metrics.tagging import measure_tagging
from chinchilla_lm.prompt.extraction import extract_answer, vote
from chinchilla_lm.prompt.rows import read_entities, tag_tokens, with_derived_fields
from chinchilla_lm.prompt.template import Template

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class WrittenDraw:
    """One draw of demonstrations.

    Attributes:
        draw: its number from 0.
        measures: of the answers.
        answers: extracted, one a row; "" where the text held none.
        texts: what the model wrote, the samples of each row.
        shares: of the samples that agree with the answer; 1 without self-consistency.
        demonstrations: numbers of the solved rows in the pool.
    """

    draw: int
    measures: Measures
    answers: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]
    demonstrations: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class WrittenResult:
    """All draws; `mean` and `spread` as in `prompted.PromptResult`; `cut_rows`: prompts cut at their beginning."""

    template: str
    shots: int
    rows: int
    draws: tuple[WrittenDraw, ...]
    mean: dict[str, float]
    spread: dict[str, float]
    cut_rows: int


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How texts are written.

    Attributes:
        samples: texts a row; more than one are voted on (self-consistency, Wang et al. 2022).
        temperature: of the samples; a single text is greedy whatever it says.
        is_constrained: only the row's own choices may be written; for templates with choices.
        seed: of the samples.
    """

    samples: int = 1
    temperature: float = 0.7
    is_constrained: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.temperature <= 0:
            raise ConfigError(
                f"samples = {self.samples}, temperature = {self.temperature}; write samples >= 1 and temperature > 0"
            )


def answer_by_writing(
    scorer: Scorer,
    template: Template,
    rows: PromptRows,
    settings: PromptSettings | None = None,
    writing: Writing | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WrittenResult:
    """Let the model write an answer to every row, for each draw of demonstrations.

    Args:
        scorer: holds the engine and the tokenizer; its slots are used.
        template: one that writes, or one with choices and `writing.is_constrained`.
        rows: what to answer, and solved rows for demonstrations.
        settings: demonstrations; the rule is not used.
        writing: samples, temperature, constraint.
        progress: told (rows done, rows in all) of the present draw.

    Raises:
        ConfigError: a template with choices without the constraint, or the reverse.
        DataError: rows that do not fit the template.
    """
    settings, writing = settings or PromptSettings(), writing or Writing()
    _check(template, settings, writing)
    results, cut = [], 0
    for draw in demonstration_draws(template, rows, settings.demonstrations):
        shown = [draw.rows if draw.is_shared else draw.rows[number] for number in range(len(rows.tests))]
        requests, cut_now = _requests(scorer, template, rows.tests, shown, writing)
        texts = _write(scorer, requests, progress)
        cut = max(cut, cut_now)
        votes = [_answer(template, row, own) for row, own in zip(rows.tests, texts, strict=True)]
        answers = [answer for answer, _ in votes]
        results.append(
            WrittenDraw(
                draw=draw.draw,
                measures=measure_written(template, rows.tests, answers),
                answers=tuple(answers),
                texts=tuple(texts),
                shares=tuple(share for _, share in votes),
                demonstrations=draw.indices,
            )
        )
    mean, spread = over_draws([one.measures for one in results])
    return WrittenResult(
        template=template.name,
        shots=settings.demonstrations.shots,
        rows=len(rows.tests),
        draws=tuple(results),
        mean=mean,
        spread=spread,
        cut_rows=cut,
    )


def measure_written(template: Template, rows: Sequence[Row], answers: Sequence[str]) -> Measures:
    """Measure extracted answers by the template's task.

    Args:
        template: says task and language.
        rows: labelled.
        answers: one a row.

    Raises:
        DataError: a row without its answer.
    """
    task, language = template.task, template.language
    if template.labels:
        words = list(template.labels.values())
        gold = [template.gold_text(row) for row in rows]
        return measure_classification([_label_like(answer, words) for answer in answers], gold, words)
    if template.choices:
        options = [list(template.answers_of(row)) for row in rows]
        chosen = [one.index(a) if a in one else -1 for a, one in zip(answers, options, strict=True)]
        return measure_choices(chosen, [template.gold_index(row) for row in rows])
    if task == "token-classification":
        types = sorted({tag[2:] for row in rows for tag in row["tags"] if tag != "O"})
        found = [read_entities(template.extract.rule, answer, types) for answer in answers]
        tags = [tag_tokens(row["tokens"], entities) for row, entities in zip(rows, found, strict=True)]
        return measure_tagging(tags, [list(row["tags"]) for row in rows])
    references = [_references(template, row) for row in rows]
    if task == "question-answering":
        return answer_metrics.measure_answers(list(answers), references, language)
    if not all(references):
        raise DataError(f"{template.name}: a row has no answer to compare with; leave such rows out")
    if task == "summarization":
        measured = overlap.measure_summary(list(answers), references, language)
    else:
        measured = overlap.measure_translation(list(answers), references, language)
    return merge(measured, diversity.measure_text(list(answers), language))


def _check(template: Template, settings: PromptSettings, writing: Writing) -> None:
    if (template.kind == "choice") != writing.is_constrained:
        way_out = (
            "score its choices, or hold the writing to them"
            if template.kind == "choice"
            else "leave the constraint out"
        )
        raise ConfigError(f"{template.name} is a template of kind {template.kind}; {way_out}")
    if settings.demonstrations.order == "entropy":
        raise ConfigError("the order entropy is found by scoring choices; score them, or leave the order as drawn")


def _references(template: Template, row: Row) -> list[str]:
    if template.task == "question-answering":
        return [str(answer["text"]) for answer in row["answers"]]
    if template.task == "summarization" and not isinstance(row["summary"], str):
        return [str(one) for one in row["summary"]]
    return [template.gold_text(with_derived_fields(template.task, row))]


def _label_like(answer: str, words: Sequence[str]) -> str:
    """Return the label's word that an answer is, but for case; else the answer."""
    return next((word for word in words if word.casefold() == answer.strip().casefold()), answer)


def _requests(
    scorer: Scorer, template: Template, rows: Sequence[Row], shown: Sequence[Sequence[Row]], writing: Writing
) -> tuple[list[Request], int]:
    capacity, requests, cut = scorer.engine.capacity, [], 0
    for number, (row, demonstrations) in enumerate(zip(rows, shown, strict=True)):
        parts = template.render(row, demonstrations)
        ids = scorer.tokenizer.encode(parts.prefix, add_special_tokens=False).ids or [scorer.start_id]
        # What a prompt leaves free is written in; a long one is cut, but never to less than half of the context.
        most = min(template.max_tokens, max(capacity - len(ids), capacity // 2))
        cut += len(ids) > capacity - most
        requests.append(
            Request(
                prompt_ids=tuple(ids[-(capacity - most) :]),
                max_tokens=most,
                n=writing.samples,
                sampling=Sampling(
                    temperature=0.0 if writing.samples == 1 else writing.temperature, seed=writing.seed + number
                ),
                stop=template.stops,
                stop_ids=scorer.stop_ids,
                constraint=LabelConstraint(labels=parts.choices) if writing.is_constrained else None,
            )
        )
    return requests, cut


def _write(
    scorer: Scorer, requests: Sequence[Request], progress: Callable[[int, int], None] | None
) -> list[tuple[str, ...]]:
    """Run requests on the engine, as many at a time as it has slots."""
    scheduler = Scheduler(scorer.engine, scorer.tokenizer, queue_limit=len(requests))
    try:
        tickets = [scheduler.submit(request) for request in requests]
        texts = []
        for done, ticket in enumerate(tickets, start=1):
            texts.append(tuple(choice.text for choice in ticket.result()))
            if progress is not None:
                progress(done, len(tickets))
        return texts
    finally:
        scheduler.drain(0.0)


def _answer(template: Template, row: Row, texts: Sequence[str]) -> tuple[str, float]:
    """Extract and vote: (answer, share of the samples behind it)."""
    choices = template.answers_of(row) if template.labels or template.choices else ()
    found = [
        text.strip() if template.kind == "choice" else extract_answer(template.extract, text, choices) for text in texts
    ]
    agreed = vote(found)
    return agreed.answer or "", agreed.share if len(texts) > 1 else 1.0
