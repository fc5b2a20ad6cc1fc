"""Which suites a run's models are asked, which items, and what asking costs.

The ladder's models and the final one answer the same items, drawn once by the run's seed. Asking is part of the budget:
in FLOPs a token read costs a third of one trained on (a forward pass), in seconds what is measured on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.manifest import Manifest
from chinchilla_lm.evals.item_sets import (
    ItemSet,
    make_item_set,
    read_item_sets,
    score_item_sets,
    stored_suite,
    write_item_set,
)
from chinchilla_lm.evals.own_words import CHOICES, heldout_texts, own_word_items
from chinchilla_lm.evals.suites import SUITES, find_suite, suite_items
from chinchilla_lm.laws.count import training_flops_per_token
from chinchilla_lm.model.transformer import Transformer, initialise
from chinchilla_lm.study.request import Allowance, StudyConfig
from chinchilla_lm.study.speeds import MachineSpeeds

OWN_WORDS, NO_SUITE = "own-words", "none"
FORWARD_SHARE = 1 / 3
"""Of an update's work that a forward pass is."""
CHEAP_SHARE = 0.02
"""Of the budget: what own-words may take where no suite was named."""
_LEAST_SECONDS = 120.0  # drawing the items and measuring what they cost takes about two
_MEASURED_ITEMS = 48  # three passes of the scorer: enough for a speed within a fifth


@dataclass(frozen=True, kw_only=True)
class SuiteChoice:
    """What models are to be asked.

    Attributes:
        names: of suites, "own-words" among them, or "none" alone.
        folder: of the suites' files; None: the Hugging Face hub.
        items: most of each suite, >= 1.
        seed: of the draw.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    items: int = 500
    seed: int = 0


def check_suites(choice: SuiteChoice) -> None:
    """Refuse suites that cannot be had before anything is measured or written.

    Raises:
        ConfigError: a name that is no suite, or one beside "none"; too few items.
        DataError: a suite's rows are not at hand.
    """
    if choice.items < 1:
        raise ConfigError(f"suite-items = {choice.items} must be >= 1; 500 is the default")
    if NO_SUITE in choice.names and len(choice.names) > 1:
        raise ConfigError(f"--suite {' '.join(choice.names)}: none stands alone; leave out it or the others")
    for name in choice.names:
        if name in (OWN_WORDS, NO_SUITE):
            continue
        if name not in SUITES:
            raise ConfigError(
                f"there is no suite {name!r}; choose from {OWN_WORDS}, {', '.join(SUITES)}, or {NO_SUITE}"
            )
        suite_items(find_suite(name), choice.folder, limit=1, seed=choice.seed)


def draw_item_sets(choice: SuiteChoice, manifest: Manifest, context: int) -> tuple[ItemSet, ...]:
    """Draw the items of each suite.

    Args:
        choice: what is asked.
        manifest: of the prepared text, whose held-out part own-words is made of.
        context: of the models.

    Raises:
        DataError: a suite cannot be had, or does not fit the context.
    """
    drawn: list[ItemSet] = []
    for name in dict.fromkeys(choice.names):
        if name == NO_SUITE:
            continue
        if name == OWN_WORDS:
            suite = stored_suite(OWN_WORDS, 1 / CHOICES)
            items = own_word_items(heldout_texts(manifest), choice.items, choice.seed)
        else:
            suite = find_suite(name)
            items = suite_items(suite, choice.folder, limit=choice.items, seed=choice.seed)
        drawn.append(make_item_set(suite, items, manifest.tokenizer_folder, context))
    return tuple(drawn)


def keep_item_sets(folder: Path, choice: SuiteChoice, manifest: Manifest, context: int) -> tuple[ItemSet, ...]:
    """Draw the items and keep them in a folder; a job that goes on reads them there.

    Raises:
        ConfigError: the folder holds other suites than those asked for.
        DataError: as `draw_item_sets`.
    """
    kept = read_item_sets(folder)
    wanted = sorted(set(choice.names) - {NO_SUITE})
    if kept or not wanted:
        names = sorted(one.suite.name for one in kept)
        if names != wanted:
            raise ConfigError(
                f"{folder} holds the items of {', '.join(names)}, and this asks for {', '.join(wanted) or 'none'}; "
                "ask for the same suites, or train in a new folder"
            )
        return kept
    for one in draw_item_sets(choice, manifest, context):
        write_item_set(folder, one)
    return read_item_sets(folder)


def choose_items(config: StudyConfig, allowance: Allowance, manifest: Manifest, context: int) -> tuple[ItemSet, ...]:
    """Draw the items of the suites that a study names, or of own-words where it names none.

    Args:
        config: the request.
        allowance: its budget.
        manifest: of the prepared text.
        context: of the models.

    Returns:
        A set for each suite; none for "none", nor, where no suite is named, for a text of too few words or in a budget
        of less than two minutes.

    Raises:
        DataError: a suite that was named cannot be had, or does not fit the context.
    """
    if config.suite:
        return draw_item_sets(suites_of(config), manifest, context)
    if allowance.kind == "seconds" and allowance.amount < _LEAST_SECONDS:
        return ()
    try:
        return draw_item_sets(replace(suites_of(config), names=(OWN_WORDS,)), manifest, context)
    except DataError:
        return ()


def suites_of(config: StudyConfig) -> SuiteChoice:
    """Give a study's own choice of suites."""
    folder = Path(config.suite_data) if config.suite_data else None
    return SuiteChoice(names=config.suite, folder=folder, items=config.suite_items, seed=config.seed)


def asking_tokens(
    item_sets: Sequence[ItemSet], allowance: Allowance, shape: ModelShape, tokenizer_folder: Path, speeds: MachineSpeeds
) -> float:
    """Give what asking a model every set costs, in tokens of its training: a third of those read, or as measured.

    Args:
        item_sets: the sets; none cost nothing.
        allowance: the budget; one of seconds is measured, with a model of random weights.
        shape: of about the middle of the ladder.
        tokenizer_folder: of the run.
        speeds: of this machine.
    """
    read = sum(one.tokens for one in item_sets)
    if not item_sets or allowance.kind == "flops":
        return read * FORWARD_SHARE
    part = [_part(one) for one in item_sets]
    model = Transformer(shape)
    initialise(model, 0)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    score_item_sets(model, part[:1], tokenizer_folder)  # the first pass builds what later ones have
    started = time.monotonic()
    score_item_sets(model, part, tokenizer_folder)
    seconds_a_token = (time.monotonic() - started) / sum(one.tokens for one in part)
    return read * seconds_a_token * speeds.whole.tokens_per_s_of(shape)


def asking_flops(item_sets: Sequence[ItemSet], shape: ModelShape) -> float:
    """FLOPs of asking a model of this shape every set."""
    return sum(one.tokens for one in item_sets) * FORWARD_SHARE * training_flops_per_token(shape)


def _part(item_set: ItemSet) -> ItemSet:
    """A few items spread over a set, their tokens by proportion."""
    items = item_set.items[:: max(1, len(item_set.items) // _MEASURED_ITEMS)]
    return replace(item_set, items=items, tokens=round(item_set.tokens * len(items) / len(item_set.items)))
