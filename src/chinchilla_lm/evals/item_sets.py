"""The items that all models of a run are asked, kept as files, and a model's accuracy on each set of them.

A set is drawn once, by seed, and written to the run directory: every model answers the same items, and a run that is
resumed needs neither the suite's own files nor the hub again. Single answers are not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import read_json, write_json
from chinchilla_lm.data.tokenizer import END_OF_TEXT, load_tokenizer
from chinchilla_lm.evals.scorer import Scorer
from chinchilla_lm.evals.suite_forms import Item
from chinchilla_lm.evals.suite_run import run_suite
from chinchilla_lm.evals.suites import Suite
from chinchilla_lm.model.transformer import Transformer

_SCHEMA = "items/1"


@dataclass(frozen=True, kw_only=True)
class ItemSet:
    """A suite's items.

    Attributes:
        suite: its name, chance and metric count.
        items: at least one.
        tokens: that a model reads to answer all of them.
    """

    suite: Suite
    items: tuple[Item, ...]
    tokens: int


def make_item_set(suite: Suite, items: Sequence[Item], tokenizer_folder: Path, context: int) -> ItemSet:
    """Count what the items cost, and see that they can be asked.

    Args:
        suite: which.
        items: of it.
        tokenizer_folder: of the models to be asked.
        context: tokens that they see.

    Raises:
        DataError: no items, or a continuation that is longer than the context.
    """
    if not items:
        raise DataError(f"{suite.name} has no items; give a file with at least one")
    tokenizer = load_tokenizer(tokenizer_folder)
    texts = {text for item in items for text, _ in item.pairs}
    read = sum(min(len(ids), context) for ids in _ids(tokenizer, sorted(texts)))
    continuations = [len(ids) for ids in _ids(tokenizer, [own for item in items for _, own in item.pairs])]
    if max(continuations) > context:
        raise DataError(
            f"{suite.name} has a continuation of {max(continuations)} tokens and the context is {context}; "
            f"give --context {2 ** (max(continuations) - 1).bit_length()}, or leave {suite.name} out"
        )
    return ItemSet(suite=suite, items=tuple(items), tokens=read + sum(continuations))


def stored_suite(name: str, chance: float, metric: str = "acc") -> Suite:
    """Name a suite whose items do not come from its own files."""
    return Suite(name=name, files=(), hub="", convert=_item, chance=chance, metric=metric)


def write_item_set(folder: Path, item_set: ItemSet) -> None:
    """Write a set to FOLDER/SUITE.json, at once."""
    suite = item_set.suite
    rows = [
        {"pairs": item.pairs, "gold": item.gold, "lengths": item.lengths, "group": item.group}
        for item in item_set.items
    ]
    head = {"schema": _SCHEMA, "suite": suite.name, "metric": suite.metric, "chance": suite.chance}
    write_json(folder / f"{suite.name}.json", {**head, "tokens": item_set.tokens, "items": rows})


def read_item_sets(folder: Path) -> tuple[ItemSet, ...]:
    """Read every set of a folder, by name; none where the folder is absent.

    Raises:
        DataError: a file that is no set of items.
    """
    return tuple(_read(path) for path in sorted(folder.glob("*.json")))


def score_item_sets(
    model: Transformer, item_sets: Sequence[ItemSet], tokenizer_folder: Path
) -> dict[str, dict[str, Any]]:
    """Ask a model every set.

    Args:
        model: of the tokenizer; not changed.
        item_sets: of `read_item_sets`.
        tokenizer_folder: its own.

    Returns:
        By suite: metric, accuracy, standard_error (over items), items, chance, cut_items.

    Raises:
        DataError: an item that cannot be priced.
        ModelError: the model's logits are not finite.
    """
    if not item_sets:
        return {}
    tokenizer = load_tokenizer(tokenizer_folder)
    start_id = tokenizer.token_to_id(END_OF_TEXT)
    assert start_id is not None, f"{tokenizer_folder} was not trained by data.tokenizer"
    scorer = Scorer(model, tokenizer, start_id=start_id, weights="float32")
    found: dict[str, dict[str, Any]] = {}
    for one in item_sets:
        result = run_suite(scorer, one.suite, one.items)
        found[one.suite.name] = {
            "metric": result.metric,
            "accuracy": result.value,
            "standard_error": result.errors[result.metric],
            "items": result.items,
            "chance": result.chance,
            "cut_items": result.cut_items,
        }
    return found


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _read(path: Path) -> ItemSet:
    record = read_json(path)
    try:
        if record["schema"] != _SCHEMA:
            raise ValueError(f"schema {record['schema']!r}")
        suite = stored_suite(record["suite"], record["chance"], record["metric"])
        return ItemSet(suite=suite, items=tuple(map(_item, record["items"])), tokens=int(record["tokens"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds no items of a suite ({error!r}); use a new run directory") from None


def _item(row: Mapping[str, Any]) -> Item:
    return Item(
        pairs=tuple((text, continuation) for text, continuation in row["pairs"]),
        gold=row["gold"],
        lengths=tuple((characters, size) for characters, size in row["lengths"]),
        group=row["group"],
    )
