"""The tables of a tuning's page: metrics, classes, confusions, examples that changed, rows used, settings, costs.

Each function takes the run and answers with rows of plain values; texts of data and models are cut, never interpreted.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

from chinchilla_lm.core.units import format_bytes, format_count, format_flops, format_seconds
from chinchilla_lm.report.rundir import is_number
from chinchilla_lm.report.tune_charts import dumbbell
from chinchilla_lm.report.tune_record import SPLITS, Record, TuneRun
from chinchilla_lm.report.tune_words import is_share, metric_name, write, write_points

MOST_EXAMPLES = 12
"""Of each kind on the page."""
MOST_CONFUSIONS = 10
_LONGEST_TEXT = 420  # characters of an example: about six lines on a desk
_OUTSIDE = "O"
_OLDER = ("before", "after", "forgotten")
_ONE_LABEL_TASKS = ("text-classification", "relation-extraction")
_COSTS = (
    ("seconds", "time, with validation", "seconds"),
    ("train_seconds", "time, training alone", "seconds"),
    ("cpu_seconds", "processor time", "seconds"),
    ("updates", "updates", "plain"),
    ("targets", "targets trained on", "plain"),
    ("tokens", "tokens read in training", "plain"),
    ("flops", "computation", "flops"),
    ("trainable_parameters", "parameters learned", "count"),
    ("parameters", "parameters in all", "count"),
    ("peak_rss_bytes", "peak memory of the process", "bytes"),
)
_WRITERS = {
    "seconds": lambda value: format_seconds(float(value)),
    "count": format_count,
    "flops": format_flops,
    "bytes": lambda value: format_bytes(int(value)),
    "plain": lambda value: f"{value:,.6g}",
}


def metric_rows(run: TuneRun) -> list[dict[str, Any]]:
    """Return every metric before and after, the primary first, then in the record's order: name, texts, picture."""
    before, after = run.metrics("before"), run.metrics("after")
    names = sorted(dict.fromkeys([*after, *before]), key=lambda name: name != run.metric)
    rows = []
    for name in names:
        old, new = before.get(name), after.get(name)
        is_drawn = is_share(name, old, new)
        rows.append(
            {
                "name": metric_name(name),
                "is_primary": name == run.metric,
                "before": write(name, old),
                "after": write(name, new),
                "change": write_points(name, None if old is None or new is None else new - old),
                "picture": dumbbell(old, new, 0.0, 1.0) if is_drawn else None,
            }
        )
    return rows


def class_rows(run: TuneRun) -> list[dict[str, Any]]:
    """Return the classes from the most to the fewest test rows: F1 before and after, precision, recall, support."""
    before, after = run.table("per_class", "before"), run.table("per_class", "after")
    rows = []
    for name in dict.fromkeys([*after, *before]):
        old, new = _numbers(before.get(name)), _numbers(after.get(name))
        score = "f1" if "f1" in new or "f1" in old else next(iter(new), "f1")
        rows.append(
            {
                "name": str(name),
                "before": old.get(score),
                "after": new.get(score),
                "precision": new.get("precision"),
                "recall": new.get("recall"),
                "support": new.get("support", old.get("support")),
                "picture": dumbbell(old.get(score), new.get(score), 0.0, 1.0),
            }
        )
    return sorted(rows, key=lambda row: (-(row["support"] or 0), row["name"]))


def confusion_rows(run: TuneRun) -> list[tuple[str, str, int, int]]:
    """Return the commonest wrong answers: (gold, answer, times before, times after), by both together."""
    if run.word("task") not in _ONE_LABEL_TASKS:
        return []
    counts = {stage: _confusions(getattr(run, stage)) for stage in ("before", "after")}
    pairs = counts["before"] + counts["after"]
    common = sorted(pairs, key=lambda pair: (-pairs[pair], pair))[:MOST_CONFUSIONS]
    return [(*pair, counts["before"][pair], counts["after"][pair]) for pair in common]


def changed_examples(run: TuneRun) -> dict[str, Any]:
    """Return what turned right and what turned wrong, with how many there are of each.

    Returns:
        {"fixed": rows, "broken": rows, "n_fixed": count or None, "n_broken": count or None}, each row with text, gold,
        before and after as texts.
    """
    listed = [each for each in run.record.get("examples_changed") or () if isinstance(each, Mapping)]
    found: dict[str, list[dict[str, str]]] = {"fixed": [], "broken": []}
    for each in listed:
        kind = _kind(each)
        if kind in found:
            found[kind].append(_example(each))
    counts = run.table("changed_counts")
    numbers = {f"n_{kind}": int(counts[kind]) if is_number(counts.get(kind)) else None for kind in found}
    return {**{kind: rows[:MOST_EXAMPLES] for kind, rows in found.items()}, **numbers}


def data_rows(run: TuneRun) -> list[dict[str, Any]]:
    """Return the splits: rows used, rows there are, the file, and in words what was left out."""
    rows = []
    for split in SPLITS:
        found = run.table("rows", split)
        used, available = found.get("used"), found.get("available")
        if not is_number(used):
            continue
        left = int(available) - int(used) if is_number(available) else 0
        said = f"{100 * used / available:.2g} % of them, drawn by seed" if left > 0 and available else "all of them"
        remark = "; ".join(part for part in (str(found.get("remark") or ""), said) if part)
        rows.append({"split": split, "used": used, "available": available, "file": found.get("file"), "remark": remark})
    return rows


def older_rows(run: TuneRun) -> list[dict[str, str]]:
    """Return the older tasks of a continuation: measure before and after, what was forgotten, what the gate says."""
    rows = []
    for each in run.table("continual").get("tasks") or ():
        metric = str(each.get("metric", ""))
        before, after, lost = (each.get(name) if is_number(each.get(name)) else None for name in _OLDER)
        rows.append(
            {
                "name": str(each.get("name", "")),
                "metric": metric_name(metric),
                "before": write(metric, before),
                "after": write(metric, after),
                "forgotten": write_points(metric, lost).removeprefix("+"),
                "gate": str(each.get("gate", "")),
            }
        )
    return rows


def setting_rows(run: TuneRun) -> list[tuple[str, str, str]]:
    """Return the settings that were used: (name, value, why); those with a reason first."""
    reasons = run.table("reasons")
    rows = [(name, value_text(value), str(reasons.get(name) or "")) for name, value in run.table("settings").items()]
    return sorted(rows, key=lambda row: not row[2])


def cost_rows(run: TuneRun) -> list[tuple[str, str]]:
    """Return what it cost: (what, how much)."""
    cost = run.table("cost")
    rows = [(name, _WRITERS[kind](cost[key])) for key, name, kind in _COSTS if is_number(cost.get(key))]
    known = {key for key, _, _ in _COSTS}
    return rows + [(key.replace("_", " "), value_text(cost[key])) for key in cost if key not in known]


def value_text(value: Any) -> str:
    """Return a record's value as one line: words as they are, the rest as JSON."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def answer_text(value: Any) -> str:
    """Return an answer, of whatever task, as text: tags as their entities, several answers joined."""
    if isinstance(value, Mapping):
        inner = next((value[key] for key in ("text", "label", "answer", "tags") if key in value), None)
        return value_text(value) if inner is None else answer_text(inner)
    if isinstance(value, Sequence) and not isinstance(value, str):
        texts = [answer_text(each) for each in value]
        if texts and all(text == _OUTSIDE or text[1:2] == "-" for text in texts):
            return _tag_text(texts)
        return " | ".join(texts) if texts else "(none)"
    return cut_text(value_text(value))


def entity_text(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """Return the entities of tagged words: `Empire State Building [location]`; "(no entity)" without any."""
    spans: list[tuple[str, list[str]]] = []
    for token, tag in zip(tokens, tags, strict=False):
        start, _, kind = tag.partition("-")
        if tag == _OUTSIDE:
            spans.append(("", []))
        elif start == "B" or not spans or spans[-1][0] != kind:
            spans.append((kind, [token]))
        else:
            spans[-1][1].append(token)
    named = [f"{' '.join(words)} [{kind}]" for kind, words in spans if words]
    return cut_text(", ".join(named)) or "(no entity)"


def cut_text(text: str) -> str:
    """Cut a text to what a page can show at once."""
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def _example(each: Record) -> dict[str, str]:
    tokens = _words(each.get("tokens"))
    texts: dict[str, str] = {}
    for name in ("gold", "before", "after"):
        tags = _words(each.get(name))
        texts[name] = entity_text(tokens, tags) if tokens and tags else answer_text(each.get(name))
    text = each.get("text") if each.get("text") is not None else " ".join(tokens)
    return {"row": str(each.get("row", "")), "text": cut_text(str(text)), **texts}


def _words(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def _kind(each: Record) -> str:
    """Name a change "fixed" or "broken"; "" where it is neither."""
    gold = each.get("gold")
    is_right = (each.get("before") == gold, each.get("after") == gold)
    return str(each.get("kind") or {(False, True): "fixed", (True, False): "broken"}.get(is_right, ""))


def _confusions(rows: Sequence[Record]) -> collections.Counter[tuple[str, str]]:
    """Count wrong labels of rows that have one."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for row in rows:
        gold, predicted = row.get("gold"), row.get("predicted")
        if isinstance(gold, str) and isinstance(predicted, str) and gold != predicted:
            found[gold, predicted] += 1
    return found


def _tag_text(tags: Sequence[str]) -> str:
    counts = collections.Counter(tag.partition("-")[2] for tag in tags if tag.startswith("B-"))
    return ", ".join(f"{count} × {kind}" for kind, count in counts.items()) or "(no entity)"


def _numbers(value: Any) -> dict[str, float]:
    entries = value.items() if isinstance(value, Mapping) else ()
    return {str(name): float(number) for name, number in entries if is_number(number)}
