"""What all generative tasks share: rows to texts, losses of given answers, generated answers, their measures.

    text of a row: prompt, accepted answers           `AnswerTexts`
    loss of the accepted answer, nats, by batches     `price_answers`: teacher-forced, no logits kept
    what the model writes itself, cut at stops        `write_answers`
    the two above, for all rows                       `predict_answers`, asked by an `AnswerRequest`
    both against the accepted answers                 `measure_answers_written`; for validation `choice_of` it

Perplexity says how well the model knows the given answers, the task's measure what it writes without them: the first is
cheap and taken of all rows, the second of as many rows as asked for. Axes: b rows, t positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chinchilla_lm.metrics import answers, diversity, overlap
from chinchilla_lm.metrics.measures import Measures, merge
from chinchilla_lm.tune.completion_tokens import end_token_id
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.prompts_generative import NO_ANSWER, PromptTemplate, answers_of
from chinchilla_lm.tune.task import Item, Prediction, Progress, Row
from chinchilla_lm.tune.writing import Writing, make_writer, writing_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from chinchilla_lm.tune.backbone import Backbone

# Rows of one forward pass, and texts generated side by side. On one core a longer batch is no faster (a step is bound
# by its matmuls from 8 rows on; LOG of decoding); these bound memory: 32 x 512 tokens of a 135M model take 40 MB.
PRICED_ROWS = 16
WRITTEN_ROWS = 32
# Differences that VALIDATION_WRITTEN answers tell apart at all, about a standard error of their mean.
_TELLABLE = {"chrf": 2.0, "rouge_l": 0.02, "f1": 0.02}
MAX_TOKENS = 512
"""Longest row unless the config says more."""

LONGEST_ANSWER = 256
"""Tokens generated at most unless the config says more: an untuned model that never stops must not take hours."""

VALIDATION_WRITTEN = 100
"""Answers written at a validation, at most."""

PRIMARY: Mapping[str, str] = {
    "translation": "chrf",
    "summarization": "rouge_l",
    "question-answering": "f1",
    "text-generation": "loss",
    "dialogue": "loss",
}
"""What early stopping goes by. chrF, not BLEU: on few short sentences BLEU's 4-grams are mostly 0 (Popovic 2015). Free
text has no single right answer, so there the loss of the given one decides."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerTexts:
    """The text side of a task.

    Attributes:
        task: translation, summarization, question-answering or text-generation.
        language: of the template's words, "en" or "zh".
        answer_language: of the answers, for measures: a language code.
        template: how a row is asked.
        stops: strings that end a written answer.
    """

    task: str
    language: str
    answer_language: str
    template: PromptTemplate
    stops: tuple[str, ...]

    def prompt(self, row: Row) -> str:
        """The prompt, without spaces at its end."""
        return self.template.prompt(row)[0]

    def completion(self, row: Row) -> str:
        """The answer to learn, with the spaces that part it from the prompt."""
        return self.template.prompt(row)[1] + self.answers(row)[0]

    def answers(self, row: Row) -> list[str]:
        """All accepted answers, the one to learn first."""
        return answers_of(self.task, row, self.language)

    def gold(self, row: Row) -> list[str]:
        """The answers that a measure accepts: none for a question without an answer."""
        return [] if self.task == "question-answering" and not row.get("answers") else self.answers(row)

    def read(self, written: str, row: Row) -> str:
        """What the model wrote as a measure compares it: without its margins, "" for a stated lack of an answer."""
        if self.task == "text-generation":  # code: the indentation of the first line counts
            return written.removeprefix(self.template.prompt(row)[1]).rstrip()
        text = written.strip()
        is_absent = self.task == "question-answering" and text.rstrip(".。").lower() == NO_ANSWER[self.language]
        return "" if is_absent else text

    def measure(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> Measures:
        """Measure what was written against the rows' accepted answers, and the loss of the given ones."""
        gold = [self.gold(row) for row in rows]
        return measure_answers_written(predictions, gold, self.task, self.answer_language)

    def describe(self) -> dict[str, Any]:
        """For the record and the card."""
        return {
            "template": self.template.text,
            "template_constants": dict(self.template.constants),
            "language": self.language,
            "answer_language": self.answer_language,
            "stop_strings": list(self.stops),
            "head": "generative",
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerRequest:
    """What to price and what to write.

    Attributes:
        given: the answer to price, of every row.
        items: of the given answers, with targets "targets" (t); a row may have several, or none.
        losses_of: the summed loss of each item of a batch, nats, (b).
        prompts: row number -> token ids, of the rows that the model answers itself.
        stops: strings that end a written answer.
        read: (row number, what the model wrote) -> the answer as a measure compares it.
    """

    given: Sequence[str]
    items: Sequence[Item]
    losses_of: Callable[[Sequence[Item]], np.ndarray[Any, Any]]
    prompts: Mapping[int, Sequence[int]]
    stops: Sequence[str]
    read: Callable[[int, str], str]


def predict_answers(
    backbone: Backbone, request: AnswerRequest, writing: Writing, progress: Progress | None = None
) -> list[Prediction]:
    """Price the given answers of all rows, and let the model write its own to those with a prompt.

    Returns:
        For each row "text" (None where none was written), and of the given answer, as far as it fits max_tokens,
        "loss" (nats, summed), "tokens", "bytes".
    """
    rows, asked = len(request.given), list(request.prompts)
    report = _counting(progress, rows + len(asked))
    losses_n, tokens_n = price_answers(request.items, rows, request.losses_of, report)
    prompts, write = [request.prompts[index] for index in asked], make_writer(backbone, writing)
    texts = write_answers(backbone.tokenizer, prompts, request.stops, write, report)
    written = {index: request.read(index, text) for index, text in zip(asked, texts, strict=True)}
    bytes_n = priced_bytes(backbone.tokenizer, request)
    return [
        {
            "text": written.get(index),
            "loss": float(losses_n[index]),
            "tokens": int(tokens_n[index]),
            "bytes": bytes_n[index],
        }
        for index in range(rows)
    ]


def priced_bytes(tokenizer: PreTrainedTokenizerFast, request: AnswerRequest) -> list[int]:
    """UTF-8 bytes of what was priced of each given answer: of one that max_tokens cut, the part that is left."""
    end, ids_n = end_token_id(tokenizer), [[] for _ in request.given]
    for item in request.items:
        targets = item.targets["targets"]
        ids_n[item.row] += targets[targets >= 0].tolist()
    return [
        len((given if ids and ids[-1] == end else str(tokenizer.decode(ids, skip_special_tokens=True))).encode())
        for given, ids in zip(request.given, ids_n, strict=True)
    ]


def price_answers(
    items: Sequence[Item],
    rows: int,
    losses_of: Callable[[Sequence[Item]], np.ndarray[Any, Any]],
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Sum the loss of the given answers by row.

    Args:
        items: with targets "targets" (t); a row may have several, or none.
        rows: their number.
        losses_of: the summed loss of each item of a batch, nats, (b).
        progress: called with the items done by each batch.

    Returns:
        (loss sums in nats, numbers of target tokens), one of each a row; 0 and 0 for a row without items.
    """
    loss_sums, targets = np.zeros(rows), np.zeros(rows, dtype=np.int64)
    for batch in by_length(items, [item.length for item in items], PRICED_ROWS):
        for item, loss in zip(batch, losses_of(batch), strict=True):
            loss_sums[item.row] += loss
            targets[item.row] += int((item.targets["targets"] >= 0).sum())
        if progress is not None:
            progress(len(batch))
    return loss_sums, targets


def write_answers(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[str],
    write: Callable[[Sequence[Sequence[int]]], list[list[int]]],
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Let the model continue each prompt; prompts of like length go together, longest first.

    Args:
        tokenizer: turns tokens into text.
        prompts: token ids of each.
        stops: strings that end a text and are no part of it.
        write: continues a batch of prompts until a stop token, which it leaves out.
        progress: called with the prompts done by each batch.

    Returns:
        The texts in the prompts' order, special tokens left out.
    """
    texts = [""] * len(prompts)
    for batch in by_length(range(len(prompts)), [len(ids) for ids in prompts], WRITTEN_ROWS):
        for index, ids in zip(batch, write([prompts[i] for i in batch]), strict=True):
            texts[index] = cut_at_stops(str(tokenizer.decode(ids, skip_special_tokens=True)), stops)
        if progress is not None:
            progress(len(batch))
    return texts


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def stop_tokens(tokenizer: PreTrainedTokenizerFast, stops: Sequence[str]) -> tuple[int, ...]:
    """The end-of-text token, and every token that begins with a stop string: what comes after them is cut in any case.

    Stop strings that straddle tokens, or begin within one, are found in the finished text (`cut_at_stops`).
    """
    ending = [end_token_id(tokenizer)]
    if stops:
        pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        ending += [token for token, piece in enumerate(pieces) if piece.startswith(tuple(stops))]
    return tuple(dict.fromkeys(ending))


def ensure_end(backbone: Any) -> None:
    """Let a folder saved from here stop where it learnt to: transformers' `generate` reads generation_config's ends.

    Base models name another end there than their tokenizer (Qwen: <|endoftext|> against <|im_end|>). On our backbone
    the saved folder takes the tokenizer's.
    """
    if backbone.form != "hub":
        return
    settings, end = backbone.module.generation_config, end_token_id(backbone.tokenizer)
    named = settings.eos_token_id
    ends = [] if named is None else [named] if isinstance(named, int) else list(named)
    if end not in ends:
        settings.eos_token_id = [*ends, end] if ends else end


def by_length(things: Sequence[Any], lengths: Sequence[int], size: int) -> Iterator[list[Any]]:
    """Yield batches of at most `size` things, longest first: memory is at its most in the first batch."""
    order = sorted(range(len(things)), key=lambda index: -lengths[index])
    for start in range(0, len(order), size):
        yield [things[index] for index in order[start : start + size]]


def choose_rows(rows: int, most: int | None) -> list[int]:
    """At most `most` row numbers, evenly spread; None: all."""
    if most is None or rows <= most:
        return list(range(rows))
    return [index * rows // most for index in range(most)]


def validation_written(task: str) -> int:
    """How many answers a validation writes: losses are of all rows, and where they decide a glance is enough."""
    return 16 if PRIMARY[task] == "loss" else VALIDATION_WRITTEN


def settle_writing(
    config: TuneConfig, backbone: Backbone, max_tokens: int, token_counts: Sequence[int], stops: Sequence[str] = ()
) -> Writing:
    """How answers are written: as the config says, as long as training answers are, to the end that was learnt.

    Args:
        config: of the run.
        backbone: its saved folder will stop at the same token (`ensure_end`).
        max_tokens: of prompt and answer.
        token_counts: tokens of training answers, nothing added to them.
        stops: strings that end an answer.
    """
    ensure_end(backbone)
    longest = longest_answer(token_counts, config.max_new_tokens, max_tokens)
    return writing_of(config, longest, stop_tokens(backbone.tokenizer, stops), may_be_empty=not all(token_counts))


def longest_answer(token_counts: Sequence[int], wanted: int | None, max_tokens: int) -> int:
    """Tokens to generate at most: as asked, or room for 99 of 100 training answers and a quarter more."""
    if wanted is not None:
        return wanted
    usual = float(np.quantile(np.asarray(token_counts), 0.99)) if len(token_counts) else LONGEST_ANSWER
    return max(1, min(math.ceil(1.25 * usual) + 1, LONGEST_ANSWER, max_tokens - 1))


def measure_answers_written(
    predictions: Sequence[Prediction], gold: Sequence[Sequence[str]], task: str, language: str
) -> Measures:
    """Measure what was written, and the loss of the given answers.

    Args:
        predictions: of all rows: "text" (None where nothing was generated), "loss" (summed, nats), "tokens", "bytes".
        gold: accepted answers of each row, the given one first.
        task: a generative task's name.
        language: of the answers.

    Returns:
        The task's measures, loss, perplexity, bits_per_byte and distinct-n. Where only a part of the rows was
        generated, intervals exist for the primary measure alone.
    """
    losses = diversity.measure_losses(
        [row["loss"] for row in predictions],
        [row["tokens"] for row in predictions],
        [row["bytes"] for row in predictions],
    )
    pairs = [(row["text"], answer) for row, answer in zip(predictions, gold, strict=True) if row["text"] is not None]
    if not pairs:
        return losses
    texts, accepted = [text for text, _ in pairs], [list(answer) for _, answer in pairs]
    parts = [_measure_task(task, texts, accepted, language), diversity.measure_text(texts, language)]
    written = [part for part in parts if part is not None]
    is_loss_primary = PRIMARY[task] == "loss"
    ordered = [losses, *written] if is_loss_primary else [*written[:1], losses, *written[1:]]
    if len(pairs) < len(predictions):
        first = ordered[0]
        values = {name: value for part in reversed(ordered) for name, value in part.values.items()}
        return dataclasses.replace(first, values=values | first.values)
    return merge(*ordered)


def choice_of(measures: Measures) -> Measures:
    """The measures of a validation with what chooses the best checkpoint as their primary.

    The task's measure decides, in steps of what a validation can tell apart; within a step the mean probability of the
    given answers' tokens does, which is known of all rows. A weak model's answers all score near 0 while it learns: by
    the measure alone the untouched weights would stay the best.
    """
    step = _TELLABLE.get(measures.primary)
    if step is None:
        return measures
    value = step * round(measures.value / step) + 0.5 * step * math.exp(-measures.values["loss"])
    return dataclasses.replace(measures, values=measures.values | {"choice": value}, primary="choice", scores_n=None)


def _counting(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Turn "so many more are done" into "so many of all are done"."""
    done = 0

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(min(done, total), total)

    return report


def _measure_task(task: str, texts: list[str], accepted: list[list[str]], language: str) -> Measures | None:
    if task == "translation":
        measures = overlap.measure_translation(texts, accepted, language)
        return _with_primary(measures, PRIMARY[task])
    if task == "summarization":
        return overlap.measure_summary(texts, accepted, language)
    if task == "question-answering":
        return answers.measure_answers(texts, accepted, language)
    if task == "dialogue":
        return _with_primary(overlap.measure_translation(texts, accepted, language), "chrf")
    return None


def _with_primary(measures: Measures, primary: str) -> Measures:
    """The same measures with another primary; scores by row are kept only if they are about it (chrF's are)."""
    scores = measures.scores_n if primary in ("chrf", measures.primary) else None
    return dataclasses.replace(measures, primary=primary, scores_n=scores)
