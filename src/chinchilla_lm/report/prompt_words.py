"""A prompted evaluation in words, and its figure: each rule's draws, their mean and their spread."""

from __future__ import annotations

from chinchilla_lm.report.chart import Chart
from chinchilla_lm.report.dots import Dot, Series, Words, dots_chart
from chinchilla_lm.report.points import counted
from chinchilla_lm.report.prompt_rows import (
    WRITTEN,
    RuleRow,
    count_of,
    draw_rows,
    factor_of,
    guess,
    metric_rows,
    model_name,
    primary,
    rule_rows,
)
from chinchilla_lm.report.record_parts import Record
from chinchilla_lm.report.tune_words import metric_name, write

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Draw, spread",
        "The same rows asked with other solved examples before them. The figure is the mean over draws, the spread "
        "their standard deviation: what the choice of examples alone moves it by. A single draw is luck.",
    ),
    (
        "95 % interval over rows",
        "Where the figure would lie on other test rows of the same kind, averaged over draws. It does not hold the "
        "spread over draws.",
    ),
    (
        "Scoring rule",
        "How the probabilities of the choices become an answer. sum: the probability of the whole choice; token, char, "
        "byte: its logarithm per token, character or byte; pmi: against the choice without the input; cc and bc: what "
        "the model prefers for an empty input, or on average over the rows, is taken off; channel: the probability of "
        "the input given the choice.",
    ),
    (
        "The best rule in hindsight",
        "The table shows what every rule would have had. Picking the best of them by this table would be choosing on "
        "the test rows; the rule that answered was chosen without them.",
    ),
    (
        "Copies",
        "Solved rows that repeat a test row are not shown as examples: they would give its answer away.",
    ),
)


def headline(record: Record) -> list[str]:
    """Return the metric with its mean and spread, and a guess; empty without a metric."""
    rows = metric_rows(record)
    if not rows:
        return []
    first, draws, shots = rows[0], len(draw_rows(record)), count_of(record, "shots")
    name = metric_name(first.name)
    said = f"{name[:1].upper()}{name[1:]} of {model_name(record)}: {write(first.name, first.mean)}"
    if draws > 1:
        said += f", ±\u00a0{spread_text(first.name, first.spread)} over {counted(draws, 'draw')}"
        said += f" of {counted(shots, 'solved example')}" if shots else ""
    elif shots is not None:
        said += f" with {counted(shots, 'solved example')}, one draw" if shots else " without a solved example"
    asked = count_of(record, "rows")
    said += f", on {counted(asked, 'row')}." if asked is not None else "."
    sentences, chance = [said], guess(record)
    if chance is not None:
        sentences.append(f"A guess among {round(1 / chance)} labels has {write('accuracy', chance)}.")
    return sentences


def tiles(record: Record) -> list[tuple[str, str, str]]:
    """Return the numbers at a glance: (name, value, remark)."""
    found = []
    for row in metric_rows(record)[:1]:
        ends = " to ".join(write(row.name, end) for end in row.interval or ())
        found.append((metric_name(row.name), write(row.name, row.mean), f"{ends} over rows" if ends else ""))
        if len(draw_rows(record)) > 1:
            found.append(("Spread", f"±\u00a0{spread_text(row.name, row.spread)}", f"{len(draw_rows(record))} draws"))
    for name, key, remark in (
        ("Rows", "rows", "asked"),
        ("Solved examples", "shots", "in each prompt"),
        ("Cut rows", "cut_rows", "did not fit the context"),
        ("Refused copies", "refused", "of test rows, left out"),
    ):
        count = count_of(record, key)
        if count is not None:
            found.append((name, f"{count:,}", remark))
    return found


def rules_chart(record: Record) -> Chart | None:
    """Draw each rule's draws with their mean and spread; where nothing was scored, the draws of the primary metric."""
    rows, metric = rule_rows(record), "accuracy"
    if not rows:
        metric = primary(record)
        values = tuple(draw.value for draw in draw_rows(record))
        if not any(value is not None for value in values):
            return None
        rows = [RuleRow(name=WRITTEN, by_draw=values, answered=tuple(range(len(values))))]
    factor = factor_of(metric, [value for row in rows for value in row.values])
    chosen, others, means, guesses = [], [], [], []
    chance = guess(record)
    for place, row in enumerate(rows):
        for number, value in enumerate(row.by_draw):
            if value is None:
                continue
            dot = Dot(row=place, value=factor * value, text=f"{row.name}, draw {number}: {write(metric, value)}")
            (chosen if number in row.answered else others).append(dot)
        means.append(_mean_dot(row, place, metric, factor))
        if chance is not None:
            guesses.append(Dot(row=place, value=100 * chance, text=f"a guess: {write(metric, chance)}"))
    name = metric_name(metric)
    many = any(row.spread is not None for row in rows)
    series = (
        Series(label="a guess", colour="quiet", dots=tuple(guesses), marker="diamond", is_hollow=True, size=4.0),
        Series(label="a draw", colour="predicted", dots=tuple(others), is_hollow=True, size=4.0),
        Series(label="a draw that this rule answered", colour="actual", dots=tuple(chosen), size=4.5),
        Series(label="mean ± spread over draws", colour="law", dots=tuple(means) if many else (), shift=0.28,
               marker="square", size=4.0),
    )  # fmt: skip
    best = rows[0]
    summary = f"{counted(len(rows), 'way')} to answer, {counted(len(best.by_draw), 'draw')} each."
    words = Words(name="rules", title=f"{name[:1].upper()}{name[1:]} by scoring rule", summary=summary)
    label = name + (" (%)" if factor == 100 else "")
    return dots_chart(words, [row.name for row in rows], series, label, is_percent=factor == 100)


def spread_text(metric: str, spread: float | None) -> str:
    """Write a spread in the metric's unit: `3.1 points`."""
    if spread is None:
        return "an unknown spread"
    return f"{100 * spread:.1f} points" if factor_of(metric, [spread]) == 100 else f"{spread:.3g}"


def _mean_dot(row: RuleRow, place: int, metric: str, factor: float) -> Dot:
    text, ends = f"{row.name}: mean {write(metric, row.mean)}", (None, None)
    if row.spread is not None:
        text += f", spread {spread_text(metric, row.spread)}"
        least = 0.0 if factor == 100 else row.mean - row.spread
        most = 1.0 if factor == 100 else row.mean + row.spread
        ends = (factor * max(least, row.mean - row.spread), factor * min(most, row.mean + row.spread))
    return Dot(row=place, value=factor * row.mean, low=ends[0], high=ends[1], text=text)
