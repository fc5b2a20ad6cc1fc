"""What a run says in plain sentences: the headline, the budget, notes on records that disagree, and seeds.

Sentences are plain text; whoever prints them escapes them. Losses keep three decimals here, finer than an evaluation is
exact (the standard error of 100 k held-out tokens is about 0.01 nats); the tables beside them keep four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chinchilla_lm.core.errors import ChinchillaError
from chinchilla_lm.core.units import Budget, format_count, format_flops, format_seconds, parse_budget
from chinchilla_lm.report.points import counted, interval_label
from chinchilla_lm.report.rundir import Record, Run, is_number

Verdict = Literal["inside", "outside", "waiting"]

_UNIT_SECONDS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_KNOWN_TEXTS = {"stdlib": "the source of Python's standard library"}
_LONGEST_NAME, _MOST_NAMES = 48, 3  # of texts in the headline: what still reads as one sentence on a phone
_SAME = 1e-6
"""Relative difference up to which two records of one number agree; they pass through JSON, which keeps all digits."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The run in at most five sentences, and whether the forecast held."""

    sentences: tuple[str, ...]
    verdict: Verdict


def headline(run: Run) -> Headline:
    """Say what was asked, what was predicted before training, and what came out."""
    sentences = [_asked_sentence(run), *_forecast_sentences(run)]
    verdict: Verdict = "waiting"
    if run.evaluation is not None:
        actual = float(run.evaluation["loss"])
        if run.forecast is None:
            sentences.append(f"It reached a held-out loss of {actual:.3f} nats per token; no forecast was recorded.")
        else:
            verdict = "inside" if is_inside(run) else "outside"
            sentences.append(f"It reached {actual:.3f}: {verdict} the interval, and {_error_words(run)}.")
    elif run.forecast is not None:
        sentences.append(_unfinished_sentence(run))
    return Headline(sentences=tuple(sentences), verdict=verdict)


def is_inside(run: Run) -> bool | None:
    """Whether the loss reached lies in the forecast's interval, from the numbers; None when one of them is missing."""
    if run.forecast is None or run.evaluation is None:
        return None
    return bool(run.forecast["low"] <= run.evaluation["loss"] <= run.forecast["high"])


def error_percent(run: Run) -> float | None:
    """The forecast's error in per cent of the loss reached; above 0 when the forecast was too high."""
    if run.forecast is None or run.evaluation is None:
        return None
    return 100.0 * (float(run.forecast["loss"]) / float(run.evaluation["loss"]) - 1.0)


def corpus_of(run: Run) -> tuple[str, ...]:
    """The texts that were given, as written in config.toml; empty when they are not recorded."""
    corpus = _find(run.config, "corpus")
    if isinstance(corpus, Sequence) and not isinstance(corpus, str):
        return tuple(str(each) for each in corpus)
    return (str(corpus),) if corpus is not None else ()


def corpus_words(run: Run) -> str:
    """The texts by their last names, short enough for a sentence; empty when they are not recorded."""
    names = [_KNOWN_TEXTS.get(each, each.rstrip("/").rpartition("/")[2]) for each in corpus_of(run)]
    names = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in names]
    if len(names) > _MOST_NAMES:
        names[_MOST_NAMES - 1 :] = [f"{len(names) - _MOST_NAMES + 1} more"]
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part) if names else ""


def budget_of(run: Run) -> Budget | None:
    """The budget as written in config.toml; None when it is missing or cannot be read."""
    text = _find(run.config, "budget")
    if not isinstance(text, str):
        return None
    try:
        return parse_budget(text)
    except ChinchillaError:
        return None


def budget_words(budget: Budget) -> str:
    """A budget in words: `5 minutes`, `1e18 FLOPs`, `8 H100-hours`, `$50`."""
    if budget.kind == "flops":
        return format_flops(budget.amount)
    if budget.kind != "seconds":
        return budget.text
    size, name = next((each for each in _UNIT_SECONDS if budget.amount % each[0] == 0), (1, "second"))
    count = budget.amount / size
    return f"{count:g} {name}{'' if count == 1 else 's'}"


def spent_sentence(run: Run) -> str:
    """Say whether the budget was kept; empty when nothing was recorded."""
    if not run.stages:
        return ""
    seconds = sum(float(stage["seconds"]) for stage in run.stages)
    flops = sum(float(stage["flops"]) for stage in run.stages if is_number(stage.get("flops")))
    budget = budget_of(run)
    if budget is None:
        return f"The recorded stages took {format_seconds(seconds)} and {format_flops(flops)}; no budget was recorded."
    if budget.kind not in ("seconds", "flops"):
        return f"The recorded stages took {format_seconds(seconds)} for a budget of {budget_words(budget)}."
    spent, shown = (seconds, format_seconds(seconds)) if budget.kind == "seconds" else (flops, format_flops(flops))
    share = spent / budget.amount
    if run.evaluation is None:
        return f"So far {shown} of {budget_words(budget)} ({100 * share:.0f} %)."
    if share <= 1:
        return f"The budget was kept: {shown} of {budget_words(budget)} ({100 * share:.0f} %)."
    return f"The budget was not kept: {shown} against {budget_words(budget)}, {100 * (share - 1):.1f} % over."


def record_notes(run: Run) -> tuple[str, ...]:
    """Name every place where two records of this run contradict each other, and every record that cannot be used."""
    notes = list(run.problems)
    forecast, law, outcome = run.forecast or {}, run.law or {}, run.evaluation or {}
    if forecast.get("law_hash") and law.get("hash") and forecast["law_hash"] != law["hash"]:
        notes.append(
            f"The forecast was made with the law {forecast['law_hash']}, but law.json holds {law['hash']}: "
            "the law was fitted again after the forecast."
        )
    claimed = outcome.get("predicted")
    if isinstance(claimed, Mapping) and forecast:
        differing = [key for key in ("loss", "low", "high") if _differ(claimed.get(key), forecast.get(key))]
        if differing:
            notes.append(f"eval.json and forecast.json disagree on the predicted {', '.join(differing)}.")
    if "inside" in outcome and is_inside(run) is not None and bool(outcome["inside"]) != is_inside(run):
        notes.append("eval.json says otherwise about the interval; this page goes by the numbers.")
    if run.steps and outcome and is_number(forecast.get("tokens")):
        share = float(run.steps[-1]["tokens"]) / float(forecast["tokens"])
        if abs(share - 1) > 0.01:
            notes.append(f"The final run trained on {100 * share:.1f} % of the tokens that the forecast was made for.")
    return tuple(notes)


def sentences_of(values: object) -> tuple[str, ...]:
    """A record's list of warnings or reasons as text; empty when it is missing."""
    if isinstance(values, str):
        return (values,)
    return tuple(str(value) for value in values) if isinstance(values, Sequence) else ()


def seeds_of(run: Run) -> dict[str, str]:
    """Every seed of config.toml and plan.toml, by its dotted name."""
    found: dict[str, str] = {}
    for source, table in (("config.toml", run.config), ("plan.toml", run.plan)):
        for name, value in flatten(table):
            if "seed" in name.rpartition(".")[2]:
                found[f"{source}: {name}"] = value
    return found


def flatten(table: Record, prefix: str = "") -> list[tuple[str, str]]:
    """A nested table as (dotted name, value), in order."""
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        rows += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", plain(value))]
    return rows


def plain(value: Any) -> str:
    """A configuration's value for people: lists without brackets, yes and no, six digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}".replace("e+", "e").replace("e0", "e")
    return ", ".join(plain(each) for each in value) if isinstance(value, list | tuple) else str(value)


def _asked_sentence(run: Run) -> str:
    budget, corpus = budget_of(run), corpus_words(run)
    if not corpus and budget is None:
        return "What was asked for is not recorded (no config.toml)."
    amount = f"{budget_words(budget)} can buy" if budget is not None else "the budget can buy"
    return f"You asked for the best model that {amount}" + (f" on {corpus}." if corpus else ".")


def _forecast_sentences(run: Run) -> list[str]:
    forecast = run.forecast
    if forecast is None:
        if run.evaluation is not None:
            return []
        verb = "is" if len(run.trials) == 1 else "are"
        done = f"{counted(len(run.trials), 'sweep run')} {verb} done. " if run.trials else ""
        return [done + "There is no forecast yet."]
    sentence = (
        f"Before training, we predicted a held-out loss of {forecast['loss']:.3f} nats per token "
        f"({interval_label(forecast)} {forecast['low']:.3f} to {forecast['high']:.3f})."
    )
    if forecast.get("established") is False:
        return [
            sentence,
            "The law behind it was not established, so the interval is a guess rather than a measurement.",
        ]
    return [sentence]


def _unfinished_sentence(run: Run) -> str:
    if not run.steps:
        return "Training has not started."
    last, goal = run.steps[-1], float((run.forecast or {})["tokens"])
    done = float(last["tokens"])
    if done >= goal * (1 - 1e-3):
        return f"Training has ended ({format_count(done)} tokens); the held-out evaluation is still to come."
    return (
        f"Training is under way or was stopped: {format_count(done)} of {format_count(goal)} tokens, "
        f"training loss {last['loss']:.3f}. The same command goes on from here."
    )


def _error_words(run: Run) -> str:
    error = error_percent(run)
    assert error is not None
    if abs(error) < 0.005:
        return "the forecast was exact to 0.01 %"
    return f"the forecast was {abs(error):.2f} % too {'high' if error > 0 else 'low'}"


def _find(table: Record, key: str) -> Any:
    """A key's value at the top of a configuration, or else in the first of its tables that has it."""
    if key in table:
        return table[key]
    inner = (_find(value, key) for value in table.values() if isinstance(value, Mapping))
    return next((value for value in inner if value is not None), None)


def _differ(one: Any, other: Any) -> bool:
    if not (is_number(one) and is_number(other)):
        return False
    return abs(one - other) > _SAME * max(abs(one), abs(other))
