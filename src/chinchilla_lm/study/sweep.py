"""Running the sweep: probe the learning rate at the cheapest rung, then climb, refitting the optimum after each rung.

Trials of one rung run side by side in worker processes; the registry remembers each finished one, so that a killed
sweep continues with the next. The records (sweep/records.jsonl) are what the law is fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from chinchilla_lm.core.errors import BudgetError, ChinchillaError, FitError
from chinchilla_lm.core.records import append_record, read_records
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.fitting.additive import Prior, fit_additive
from chinchilla_lm.laws.trust.bracket import Run
from chinchilla_lm.study.directory import RunDirectory
from chinchilla_lm.study.ladder import Ladder, edge_size, prior_params, rung_sizes, tokens_for
from chinchilla_lm.study.pool import WorkerPool
from chinchilla_lm.study.progress import Progress
from chinchilla_lm.study.registry import Registry
from chinchilla_lm.study.trial import TrialPlaces, TrialSpec, run_trial, trunk_reaches

_PROBE_SCALES = (0.5, 1.0, 2.0)
# k moves only where the parabola promises more than seeds scatter: three probes of one size gave .74, 1.2 and 1.4 at
# nearly the same compute, all within this of the loss at k = 1 (dev/LOG.md 2026-11-21).
_LEAST_GAIN = 0.003
_REPEAT_SEED = 1000  # added to the sweep's seed: no run of a user's own few seeds shares it
# What is known of seeds before a sweep: .24 to .8 % of the loss for models of 1e5 to 1e6 parameters (recipe v1), worth
# as much as four pairs of runs of this machine's own.
_PRIOR_SEED_SD, _PRIOR_PAIRS = 0.003, 4


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What all trials of a sweep share.

    Attributes:
        vocab: of the tokenizer.
        context: tokens in a window.
        unique_tokens: in the training text.
        dtype: of matmuls.
        device: "auto", "cpu" or "cuda".
        worker_threads: of each worker.
        n_workers: side by side.
        seed: of weights and data order.
    """

    vocab: int
    context: int
    unique_tokens: float
    dtype: Literal["float32", "bfloat16"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    worker_threads: int
    n_workers: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What a worker process receives."""

    spec: TrialSpec
    places: TrialPlaces


def do_trial(task: TrialTask, report: Callable[[float, float], None]) -> dict[str, Any]:
    """Run one trial in a worker process (see `run_trial`)."""
    return run_trial(task.spec, task.places, report)


def run_sweep(
    directory: RunDirectory, ladder: Ladder, settings: SweepSettings, pool: WorkerPool, progress: Progress
) -> list[dict[str, Any]]:
    """Run the whole ladder, or what is left of it.

    Args:
        directory: of the run; sweep/ is written.
        ladder: the rungs.
        settings: what all trials share.
        pool: worker processes.
        progress: told of every event.

    Returns:
        The trial records in order, those of diverged trials included.

    Raises:
        ChinchillaError: a trial failed, or a whole rung diverged.
    """
    climb = _Climb(directory, settings, pool, progress)
    lr_scale = climb.probe(ladder)
    for rung, flops in enumerate(ladder.rung_flops):
        climb.run_rung(rung, flops, ladder.sizes_per_rung, lr_scale)
    return climb.records


class _Climb:
    """The state of a climb: the records so far, and the trunks that may be continued."""

    def __init__(self, directory: RunDirectory, settings: SweepSettings, pool: WorkerPool, progress: Progress) -> None:
        self._directory, self._settings, self._pool, self._progress = directory, settings, pool, progress
        self._registry = Registry(directory.registry)
        self.records: list[dict[str, Any]] = []
        self._written = set()
        if directory.trials.exists():
            self._written = {record["trial"] for record in read_records(directory.trials, "trial/1")}

    def probe(self, ladder: Ladder) -> float:
        """Measure the learning-rate scale k, and the scatter of seeds, at the centre of the bottom rung; return k."""
        flops = ladder.rung_flops[0]
        sizes = self._sizes(flops, prior_params(flops), 1)
        specs = [
            self._spec("ladder" if scale == 1.0 else "probe", 0, flops, sizes[0], scale) for scale in _PROBE_SCALES
        ]
        again = self._spec("repeat", 0, flops, sizes[0], 1.0)
        specs.append(replace(again, trial=f"{again.trial}-repeat", seed=self._settings.seed + _REPEAT_SEED))
        records = [record for record in self._run(specs)[: len(_PROBE_SCALES)] if record["status"] == "done"]
        scales = [record["lr_scale"] for record in records]
        losses = [record["loss"] for record in records]
        return best_scale(scales, losses)

    def run_rung(self, rung: int, flops: float, count: int, lr_scale: float) -> None:
        """Run a rung's sizes around the running optimum, and one more where the best lies at an edge."""
        shapes = self._sizes(flops, self._best_params(flops), count)
        done = self._run([self._spec("ladder", rung, flops, shape, lr_scale) for shape in shapes])
        finished = [record for record in done if record["status"] == "done"]
        if not finished:
            raise ChinchillaError(
                f"every run of the rung at {flops:.2g} FLOPs diverged (k = {lr_scale:g}); look at the text"
            )
        best = min(finished, key=lambda record: record["loss"])
        beyond = edge_size(
            shapes, ModelShape.from_dict(best["shape"]), flops, unique_tokens=self._settings.unique_tokens
        )
        if beyond is not None:
            self._run([self._spec("ladder", rung, flops, beyond, lr_scale)])

    def _best_params(self, flops: float) -> float:
        """Give the running N*: by the law once two rungs are done, else by the best run or the prior."""
        runs = ladder_runs(self.records)
        if len(runs) < 3:
            return prior_params(flops)
        best = best_of_top_rung(runs)
        from_below = best.params * (flops / best.flops) ** 0.5
        if len({run.rung for run in runs}) < 2:
            return from_below
        try:
            fit = fit_additive(
                np.array([run.params for run in runs]),
                np.array([run.tokens for run in runs]),
                np.array([run.loss for run in runs]),
                delta=0.003,
                prior=Prior(),
            )
        except FitError:
            return from_below
        k = float(np.median([run.flops / run.params / run.tokens for run in runs]))
        params, _ = fit.law.optimum(flops, k)
        # The law of a few small runs may wander: it moves the next rung by a factor 1.8 at most.
        return float(np.clip(params, from_below / 1.8, from_below * 1.8))

    def _sizes(self, flops: float, best_params: float, count: int) -> list[ModelShape]:
        settings = self._settings
        sizes = rung_sizes(
            flops,
            best_params,
            count,
            vocab=settings.vocab,
            context=settings.context,
            unique_tokens=settings.unique_tokens,
        )
        if not sizes:
            raise BudgetError(
                f"no model suits a run of {flops:.2g} FLOPs on {settings.unique_tokens:.2g} tokens of text: it would "
                "see fewer than 1 token per parameter or the text more than 4 times; give a larger budget, or more text"
            )
        return sizes

    def _spec(
        self, purpose: Literal["probe", "ladder", "repeat"], rung: int, flops: float, shape: ModelShape, lr_scale: float
    ) -> TrialSpec:
        tokens = tokens_for(shape, flops)
        trunk = self._trunk_below(shape, lr_scale, tokens)
        scale = "" if lr_scale == 1.0 else f"-k{lr_scale:.3g}"
        return TrialSpec(
            trial=f"r{rung}-d{shape.d_model:04d}{scale}",
            purpose=purpose,
            rung=rung,
            flops=flops,
            shape=shape,
            design_tokens=tokens if trunk is None else trunk["design_tokens"],
            lr_scale=lr_scale,
            seed=self._settings.seed,
            dtype=self._settings.dtype,
            threads=self._settings.worker_threads,
            device=self._settings.device,
            start=None if trunk is None else trunk["checkpoint"],
        )

    def _trunk_below(self, shape: ModelShape, lr_scale: float, tokens: float) -> dict[str, Any] | None:
        """Find the finished trial whose trunk this one continues: same size and rate, and room to grow."""
        for record in reversed(self.records):
            is_same = record["shape"] == shape.to_dict() and record["lr_scale"] == lr_scale
            is_same = is_same and record["purpose"] != "repeat"
            if is_same and record["status"] == "done" and record["tokens"] < tokens:
                return record if trunk_reaches(record["design_tokens"], tokens) else None
        return None

    def _run(self, specs: Sequence[TrialSpec]) -> list[dict[str, Any]]:
        """Run trials, or take their finished results; keep and return their records in the order asked for."""
        results = {record["trial"]: record for record in self.records}
        todo: list[TrialSpec] = []
        for spec in specs:
            known = results.get(spec.trial) or self._registry.result(spec.trial, asked_of(spec))
            if known is None:
                todo.append(spec)
                self._registry.begin(spec.trial, asked_of(spec))
            else:
                self._keep(known)
                results[spec.trial] = known
        directory = self._directory
        places = TrialPlaces(
            prepared=directory.prepared,
            trunks=directory.sweep / "trunks",
            drafts=directory.sweep / "drafts",
            suites=directory.suites,
        )
        for event in self._pool.run(do_trial, [TrialTask(spec=spec, places=places) for spec in todo]):
            spec = todo[event.index]
            self._directory.tick()
            if event.kind == "progress":
                self._progress.trial(spec.trial, event.fraction, event.loss)
            elif event.kind == "failed":
                raise ChinchillaError(f"trial {spec.trial} failed: {event.error}")
            elif event.kind == "done":
                self._registry.finish(spec.trial, event.result)
                self._progress.trial(spec.trial, 1.0, event.result.get("loss", math.nan))
                results[spec.trial] = event.result
        for spec in todo:
            self._keep(results[spec.trial])
        return [results[spec.trial] for spec in specs]

    def _keep(self, record: dict[str, Any]) -> None:
        if any(kept["trial"] == record["trial"] for kept in self.records):
            return
        self.records.append(record)
        if record["trial"] not in self._written:
            self._written.add(record["trial"])
            fields = {name: value for name, value in record.items() if name not in ("checkpoint", "schema")}
            append_record(self._directory.trials, "trial/1", fields, sync=True)


def asked_of(spec: TrialSpec) -> dict[str, Any]:
    """What makes two trials the same: all but the threads, of which a resumed run may have fewer or more."""
    return {name: value for name, value in spec.to_dict().items() if name != "threads"}


def best_scale(scales: Sequence[float], losses: Sequence[float]) -> float:
    """Choose k from a probe: the vertex of the parabola in ln k through three points, 1 unless that is clearly worse.

    Never beyond the scales tried: once a parabola promised most at 2.8, where the loss came out 2.6 % above that at 2.

    Args:
        scales: k tried, the diverged ones left out.
        losses: reached with each.

    Returns:
        k within the scales tried; the best of them where there is no vertex.
    """
    if not scales:
        return _PROBE_SCALES[0]
    best, least = float(scales[int(np.argmin(losses))]), min(losses)
    if len(scales) == 3:
        curvature, slope, at_one = np.polyfit(np.log(scales), losses, 2)
        if curvature > 0:
            vertex = float(np.clip(-slope / (2 * curvature), math.log(min(scales)), math.log(max(scales))))
            best, least = math.exp(vertex), float(at_one + slope * vertex + curvature * vertex**2)
    if 1.0 in scales and losses[list(scales).index(1.0)] <= least * (1 + _LEAST_GAIN):
        return 1.0
    return float(f"{best:.2g}")


def ladder_runs(records: Sequence[dict[str, Any]]) -> list[Run]:
    """Turn trial records into the runs of a law: ladder trials that finished, at the rate that the sweep settled on.

    The bottom rung's k = 1 trial is left out when the probe chose another k.
    """
    ladder = [record for record in records if record["purpose"] == "ladder" and record["status"] == "done"]
    if not ladder:
        return []
    lr_scale = ladder[-1]["lr_scale"]
    return [
        Run(
            params=float(record["params_matmul"]),
            tokens=float(record["tokens"]),
            flops=float(record["flops"]),
            loss=float(record["loss"]),
            rung=int(record["rung"]),
        )
        for record in ladder
        if record["lr_scale"] == lr_scale
    ]


def seed_scatter(records: Sequence[dict[str, Any]]) -> float:
    """Estimate the standard deviation of ln L between seeds from the sweep's repeated run.

    Args:
        records: of all trials.

    Returns:
        sd of ln L: one pair of seeds has one degree of freedom, so it is pooled with what other sweeps showed.
    """
    done = [record for record in records if record["status"] == "done"]
    squares, pairs = _PRIOR_PAIRS * _PRIOR_SEED_SD**2, _PRIOR_PAIRS
    for again in (record for record in done if record["purpose"] == "repeat"):
        for first in done:
            is_same = all(first[name] == again[name] for name in ("shape", "rung", "lr_scale"))
            if is_same and first["purpose"] == "ladder":
                squares += math.log(first["loss"] / again["loss"]) ** 2 / 2
                pairs += 1
    return math.sqrt(squares / pairs)


def best_of_top_rung(runs: Sequence[Run]) -> Run:
    """Return the run of least loss on the highest rung that has one."""
    highest = max(int(run.rung) for run in runs)
    return min((run for run in runs if run.rung == highest), key=lambda run: run.loss)
