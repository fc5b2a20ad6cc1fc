"""Zero-shot suites by name: questions with choices, minimal pairs and clozes, priced by one `Scorer`.

A suite turns rows into items: pairs (text, continuation) of which one is right (choices, minimal pairs), or a single
pair that is right when every token of it is the likeliest (cloze). Wordings are those of lm-evaluation-harness's tasks
of the same name, so that results can be compared (`bench/suite_parity.py` compares them item by item).
Rows come from files (a folder with the names in `Suite.files`) or from the Hugging Face hub.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.data.documents import HUB_PREFIX
from chinchilla_lm.data.labelled import read_rows
from chinchilla_lm.evals import suite_forms as forms
from chinchilla_lm.evals.suite_forms import Item


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A set of questions that the field knows by this name.

    Attributes:
        name: on the command line.
        files: names under which its rows are found below a folder, the first that exists; "/" parts folders.
        hub: the same rows on the Hugging Face hub, "hf:NAME:CONFIG:SPLIT".
        convert: a row to an item; it raises KeyError for a row of another form.
        chance: accuracy of a guess.
        metric: which of `SuiteResult.values` is quoted: "acc", or "acc_norm" where choices differ in length.
        harness: its name in lm-evaluation-harness.
        source: the paper.
    """

    name: str
    files: tuple[str, ...]
    hub: str
    convert: Callable[[Mapping[str, Any]], Item]
    chance: float
    metric: str = "acc"
    harness: str = ""
    source: str = ""


def suite_items(suite: Suite, folder: Path | None, *, limit: int | None = None, seed: int = 0) -> list[Item]:
    """Read a suite's items.

    Args:
        suite: which.
        folder: where its files are; None, or a folder without them, takes the hub.
        limit: most items; they are drawn evenly over the groups by `seed`, the same for every model.
        seed: of the draw.

    Returns:
        The items, in the order of the rows.

    Raises:
        DataError: neither the files nor the hub are at hand, or a row has another form.
    """
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder} is no folder; give the one with the suites' files, or leave it out for the hub")
    found = None if folder is None else _find(folder, suite.files)
    if found is None and folder is not None and not _has_hub():
        raise DataError(f"{folder} has none of {', '.join(suite.files)}, which {suite.name} is read from")
    rows = read_rows(found) if found is not None else _read_hub(suite.hub)
    items = []
    for number, row in enumerate(rows, start=1):
        try:
            items.append(suite.convert(row))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            where = found if found is not None else suite.hub
            raise DataError(
                f"{where}, row {number}: not the form of {suite.name} ({error!r}); give its own file"
            ) from None
    return _draw(items, limit, seed)


def find_suite(name: str) -> Suite:
    """Return a suite by its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SUITES:
        raise ConfigError(f"there is no suite {name!r}; choose from {', '.join(SUITES)}")
    return SUITES[name]


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _has_hub() -> bool:
    try:
        import datasets  # noqa: F401 - an optional package  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def _read_hub(source: str) -> list[dict[str, Any]]:
    """Read one configuration of a hub's set, or all of them where the source says "*"."""
    if ":*:" not in source or not _has_hub():
        return read_rows(source)
    import datasets  # pyright: ignore[reportMissingImports]

    name = source.removeprefix(HUB_PREFIX).partition(":")[0]
    try:
        configurations = datasets.get_dataset_config_names(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{source!r} cannot be read ({reason}); check the network, or give its files") from None
    return [row for one in configurations for row in read_rows(source.replace("*", one))]


def _draw(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    """Take as many of each group, as nearly as can be."""
    if limit is None or limit >= len(items):
        return items
    if limit < 1:
        raise ConfigError(f"limit must be >= 1, got {limit}; leave it out to take all")
    by_group: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        by_group.setdefault(item.group, []).append(place)
    draws = random.Random(seed)
    for places in by_group.values():
        draws.shuffle(places)
    order = [places[turn] for turn in range(limit) for places in by_group.values() if turn < len(places)]
    return [items[place] for place in sorted(order[:limit])]


_PACK = "mc-zeroshot-pack/"
_ROWS: tuple[tuple[str, tuple[str, ...], str, Callable[..., Item], float, str, str, str], ...] = (
    # name, files, hub, convert, chance, metric, name in the harness, source
    (
        "blimp",
        (
            "pairs-blimp/test.jsonl.gz",
            "blimp.jsonl.gz",
            "blimp.jsonl",
        ),
        "nyu-mll/blimp:*:train",
        forms.minimal_pair,
        0.5,
        "acc",
        "blimp",
        "Warstadt et al. 2020",
    ),
    (
        "lambada",
        (
            "cloze-lambada-openai/test.jsonl",
            "lambada.jsonl",
        ),
        "EleutherAI/lambada_openai:default:test",
        forms.last_word,
        0.0,
        "acc",
        "lambada_openai",
        "Paperno et al. 2016",
    ),
    (
        "arc-easy",
        (
            _PACK + "arc_easy.jsonl",
            "arc_easy.jsonl",
        ),
        "allenai/ai2_arc:ARC-Easy:test",
        forms.question,
        0.25,
        "acc_norm",
        "arc_easy",
        "Clark et al. 2018",
    ),
    (
        "arc-challenge",
        (
            _PACK + "arc_challenge.jsonl",
            "arc_challenge.jsonl",
        ),
        "allenai/ai2_arc:ARC-Challenge:test",
        forms.question,
        0.25,
        "acc_norm",
        "arc_challenge",
        "Clark et al. 2018",
    ),
    (
        "piqa",
        (
            _PACK + "piqa.jsonl",
            "piqa.jsonl",
        ),
        "baber/piqa::validation",
        forms.question,
        0.5,
        "acc_norm",
        "piqa",
        "Bisk et al. 2020",
    ),
    (
        "copa",
        (
            _PACK + "copa.jsonl",
            "copa.jsonl",
        ),
        "aps/super_glue:copa:validation",
        forms.copa,
        0.5,
        "acc",
        "copa",
        "Roemmele et al. 2011",
    ),
    (
        "openbookqa",
        (
            _PACK + "openbookqa.jsonl",
            "openbookqa.jsonl",
        ),
        "allenai/openbookqa:main:test",
        forms.sentence,
        0.25,
        "acc_norm",
        "openbookqa",
        "Mihaylov et al. 2018",
    ),
    (
        "hellaswag",
        ("hellaswag.jsonl",),
        "Rowan/hellaswag::validation",
        forms.ending,
        0.25,
        "acc_norm",
        "hellaswag",
        "Zellers et al. 2019",
    ),
    (
        "winogrande",
        (
            _PACK + "winogrande_xl_dev.jsonl",
            "winogrande_xl_dev.jsonl",
        ),
        "allenai/winogrande:winogrande_xl:validation",
        forms.blank,
        0.5,
        "acc",
        "winogrande",
        "Sakaguchi et al. 2020",
    ),
    (
        "wsc273",
        (
            _PACK + "winograd_wsc273.jsonl",
            "winograd_wsc273.jsonl",
        ),
        "lighteval/winograd_wsc:wsc273:test",
        forms.blank,
        0.5,
        "acc",
        "wsc273",
        "Levesque et al. 2012",
    ),
    (
        "boolq",
        (
            _PACK + "boolq_dev.jsonl.gz",
            "boolq_dev.jsonl.gz",
        ),
        "aps/super_glue:boolq:validation",
        forms.yes_no,
        0.5,
        "acc",
        "boolq",
        "Clark et al. 2019",
    ),
    (
        "commonsenseqa",
        (
            "mc-commonsenseqa/dev.jsonl",
            "commonsenseqa.jsonl",
        ),
        "tau/commonsense_qa::validation",
        forms.commonsense,
        0.2,
        "acc",
        "commonsense_qa",
        "Talmor et al. 2019",
    ),
)
SUITES: dict[str, Suite] = {
    name: Suite(
        name=name,
        files=files,
        hub=HUB_PREFIX + hub,
        convert=convert,
        chance=chance,
        metric=metric,
        harness=harness,
        source=source,
    )
    for name, files, hub, convert, chance, metric, harness, source in _ROWS
}
