"""Few-shot demonstrations: which solved rows stand before the item, in several draws.

    balanced   at random, every label as often as the others, in random order
    random     at random
    nearest    the k nearest by cosine of vectors given from outside (KATE), the nearest last, beside the item
    bm25       the same by BM25 over the rows' texts

One draw is luck: accuracies of 4-shot prompts lay 19 to 23 points apart over three draws (SmolLM2-135M, SST-2 and AG
News), so the default is five. `nearest` and `bm25` have no luck of their own; each of their draws may choose from its
own random four fifths of the pool, which shows how much the result owes to single rows.

A demonstration that equals or nearly equals any test item is refused (`contamination`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.prompt.bm25 import Bm25
from chinchilla_lm.prompt.contamination import TestTexts
from chinchilla_lm.prompt.rows import with_derived_fields
from chinchilla_lm.prompt.template import Template

Method = Literal["balanced", "random", "nearest", "bm25"]
Order = Literal["drawn", "entropy"]
NEAREST: tuple[Method, ...] = ("nearest", "bm25")
# Of the pool, for each draw of the nearest-neighbour methods.
POOL_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How demonstrations are chosen.

    Attributes:
        shots: demonstrations in a prompt, >= 0.
        method: see the module's first lines.
        order: of the demonstrations: as the method draws them, or the one that `ordering` finds by the model's entropy
            on unlabelled rows (whoever holds the model does it); not with nearest and bm25, whose nearest stand last.
        draws: independent choices, >= 1; figures are means over them.
        seed: of the draws.
    """

    shots: int = 4
    method: Method = "balanced"
    order: Order = "drawn"
    draws: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shots < 0 or self.draws < 1:
            raise ConfigError(f"shots = {self.shots}, draws = {self.draws}; write shots >= 0 and draws >= 1")
        if self.order == "entropy" and self.method in NEAREST:
            raise ConfigError(
                f"the method {self.method} puts the nearest row last; take balanced or random with the order entropy"
            )


@dataclass(frozen=True, kw_only=True)
class DemoDraw:
    """One choice of demonstrations.

    Attributes:
        draw: its number from 0.
        indices: numbers in the pool, in the prompt's order: one tuple for all rows, or one a test row.
        rows: the solved rows themselves, laid out as `indices`; what `plan_scores` takes.
        is_shared: whether one tuple serves every row.
        refused: pool rows that were left out as copies of test items.
    """

    draw: int
    indices: tuple[Any, ...]
    rows: tuple[Any, ...]
    is_shared: bool
    refused: tuple[int, ...]

    def shared(self) -> DemoDraw:
        """Return a draw that serves every row: itself, or the first row's demonstrations."""
        if self.is_shared:
            return self
        return replace(self, indices=self.indices[0], rows=self.rows[0], is_shared=True)


def select_demonstrations(
    template: Template,
    pool: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    settings: DemoSettings | None = None,
    vectors: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[DemoDraw]:
    """Choose demonstrations for a test set, several times.

    Args:
        template: says the rows' labels and which fields are their input.
        pool: m solved rows (the training rows).
        tests: n rows; their answers are not read.
        settings: shots, method, draws and seed.
        vectors: pool_mv and tests_nv for `nearest`, for instance mean hidden states of the model itself.

    Returns:
        `settings.draws` draws, the same for the same seed.

    Raises:
        ConfigError: `nearest` without vectors, or vectors of the wrong shape.
        DataError: too few rows once copies of test items are refused.
    """
    chosen = settings or DemoSettings()
    guard = _Guard(template, pool, tests)
    if chosen.method in NEAREST:
        similarity = _similarity(template, pool, tests, chosen.method, vectors)
        return _nearest_draws(guard, similarity, chosen)
    labels = _labels(template, pool) if chosen.method == "balanced" else [0] * len(pool)
    return [_random_draw(guard, labels, chosen, draw) for draw in range(chosen.draws)]


def input_text(template: Template, row: Mapping[str, Any]) -> str:
    """Return what a row says, without template and answer: the texts of its content fields, a line each."""
    fields = with_derived_fields(template.task, row)
    pieces: list[str] = []
    for name in template.content or template.fields:
        _collect_texts(fields.get(name), pieces)
    return "\n".join(pieces)


class _Guard:
    """The pool without copies of test items; a row is checked when it is first wanted."""

    def __init__(
        self, template: Template, pool: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]]
    ) -> None:
        self.pool = pool
        self.tests = len(tests)
        self._template = template
        self._index = TestTexts([input_text(template, row) for row in tests])
        self._is_copy: dict[int, bool] = {}

    def is_clean(self, number: int) -> bool:
        if number not in self._is_copy:
            found = self._index.nearest(input_text(self._template, self.pool[number]))
            self._is_copy[number] = found is not None
        return not self._is_copy[number]

    def take(self, numbers: Sequence[int] | np.ndarray, count: int) -> list[int]:
        """Return the first `count` clean numbers."""
        taken: list[int] = []
        for number in numbers:
            if len(taken) == count:
                break
            if self.is_clean(int(number)):
                taken.append(int(number))
        return taken

    @property
    def refused(self) -> tuple[int, ...]:
        return tuple(sorted(number for number, is_copy in self._is_copy.items() if is_copy))


def _random_draw(guard: _Guard, labels: Sequence[int], settings: DemoSettings, draw: int) -> DemoDraw:
    rng = np.random.default_rng([settings.seed, draw])
    by_label: dict[int, list[int]] = {}
    for number in rng.permutation(len(labels)):
        by_label.setdefault(labels[number], []).append(int(number))
    queues = [by_label[label] for label in rng.permutation(sorted(by_label))]
    taken: list[int] = []
    while len(taken) < settings.shots and any(queues):
        for queue in queues:
            # A label whose rows are used up, or all copies of test items, leaves its turn to the others.
            while queue and not guard.is_clean(queue[0]):
                queue.pop(0)
            if queue and len(taken) < settings.shots:
                taken.append(queue.pop(0))
    _require(len(taken), settings, guard)
    order = tuple(taken[place] for place in rng.permutation(len(taken)))
    rows = tuple(guard.pool[number] for number in order)
    return DemoDraw(draw=draw, indices=order, rows=rows, is_shared=True, refused=guard.refused)


def _nearest_draws(guard: _Guard, similarity: Callable[[int], np.ndarray], settings: DemoSettings) -> list[DemoDraw]:
    size = len(guard.pool)
    share = size if settings.draws == 1 else max(min(size, settings.shots), int(POOL_SHARE * size))
    is_allowed_dm = np.zeros((settings.draws, size), dtype=bool)
    for draw in range(settings.draws):
        is_allowed_dm[draw, np.random.default_rng([settings.seed, draw]).permutation(size)[:share]] = True
    chosen: list[list[tuple[int, ...]]] = [[] for _ in range(settings.draws)]
    for row in range(guard.tests):
        ranked = np.argsort(-similarity(row), kind="stable")
        for draw in range(settings.draws):
            taken = guard.take(ranked[is_allowed_dm[draw][ranked]], settings.shots)
            _require(len(taken), settings, guard)
            chosen[draw].append(tuple(reversed(taken)))
    return [
        DemoDraw(
            draw=draw,
            indices=tuple(indices),
            rows=tuple(tuple(guard.pool[number] for number in numbers) for numbers in indices),
            is_shared=False,
            refused=guard.refused,
        )
        for draw, indices in enumerate(chosen)
    ]


def _similarity(
    template: Template,
    pool: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    method: str,
    vectors: tuple[np.ndarray, np.ndarray] | None,
) -> Callable[[int], np.ndarray]:
    """Return a function from a test row's number to its similarity with every pool row, [m]."""
    if method == "bm25":
        index = Bm25([input_text(template, row) for row in pool])
        return lambda row: index.scores(input_text(template, tests[row]))
    if vectors is None:
        raise ConfigError("nearest needs vectors of the pool and of the test rows; give them, or write method = 'bm25'")
    shapes = [np.shape(vector) for vector in vectors]
    if [shape[:1] for shape in shapes] != [(len(pool),), (len(tests),)] or shapes[0][1:] != shapes[1][1:]:
        raise ConfigError(f"vectors of shapes {shapes}; give one row for each of {len(pool)} and {len(tests)} texts")
    pool_mv, tests_nv = (_unit_length(np.asarray(vector, dtype=np.float64)) for vector in vectors)
    return lambda row: pool_mv @ tests_nv[row]


def _unit_length(vectors_mv: np.ndarray) -> np.ndarray:
    lengths_m1 = np.linalg.norm(vectors_mv, axis=1, keepdims=True)
    return vectors_mv / np.maximum(lengths_m1, np.finfo(np.float64).tiny)


def _labels(template: Template, pool: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return each row's class; rows whose choices are their own have none."""
    return [template.gold_index(row) for row in pool] if template.is_closed else [0] * len(pool)


def _require(taken: int, settings: DemoSettings, guard: _Guard) -> None:
    if taken < settings.shots:
        raise DataError(
            f"{settings.shots} demonstrations wanted, {taken} of {len(guard.pool)} training rows can serve "
            f"({len(guard.refused)} copy test rows); give more rows, or fewer shots"
        )


def _collect_texts(value: Any, pieces: list[str]) -> None:
    if isinstance(value, str):
        pieces.append(value)
    elif isinstance(value, Mapping):
        for part in value.values():
            _collect_texts(part, pieces)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _collect_texts(part, pieces)
