"""The stages of a study, each of which reads what the ones before it wrote: see `study.run` for their order.

A stage writes its record and is never run twice. The forecast is on disk before the final training starts, and nothing
later touches it.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from chinchilla_lm.core.config import dump_toml, load_toml
from chinchilla_lm.core.errors import BudgetError
from chinchilla_lm.core.files import read_json, require_space, write_json, write_text
from chinchilla_lm.core.records import read_records
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.loader import heldout_windows
from chinchilla_lm.data.manifest import Manifest, load_manifest
from chinchilla_lm.data.prepare import prepare
from chinchilla_lm.evals.item_sets import ItemSet, write_item_set
from chinchilla_lm.laws.count import count_parameters, training_flops_per_token
from chinchilla_lm.laws.shapes import nearest_shape, vocab_for
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.report.page import write_report
from chinchilla_lm.study import finish
from chinchilla_lm.study.asking import CHEAP_SHARE, FORWARD_SHARE, asking_tokens, choose_items
from chinchilla_lm.study.decide import forecast_record, forecast_run, rank_candidates
from chinchilla_lm.study.directory import RunDirectory
from chinchilla_lm.study.ladder import LEAST_WIDTH, Ladder, asking_share, design_ladder, prior_params
from chinchilla_lm.study.machine import (
    choose_dtype,
    describe_machine,
    machine_speeds,
    measure_speeds,
    sizes_to_measure,
)
from chinchilla_lm.study.plan_file import plan_comments
from chinchilla_lm.study.pool import WorkerPool
from chinchilla_lm.study.progress import Progress
from chinchilla_lm.study.request import Allowance, StudyConfig
from chinchilla_lm.study.speeds import MachineSpeeds
from chinchilla_lm.study.sweep import SweepSettings, best_of_top_rung, ladder_runs, run_sweep, seed_scatter
from chinchilla_lm.study.tasks import fit_tasks, forecast_tasks, laws_record, task_lines
from chinchilla_lm.study.train_only import train_on_prepared
from chinchilla_lm.study.trial import HELDOUT_TOKENS
from chinchilla_lm.train.config import TrainConfig
from chinchilla_lm.train.job import JobResult
from chinchilla_lm.train.recipe import RecipeOptions, recipe_for
from chinchilla_lm.train.speed import measure_steps

_GUESSED_VOCAB = 1024  # while the machine is measured; the vocabulary follows from what it can do
_MOST_BYTES_PER_TOKEN = 4.0
# The law's vocabulary is doubled: at 2e12 FLOPs and d = 64, where it says 457 entries, bits per byte fell from 2.160
# (512) to 2.120 (1024) and 2.091 (2048) (dev/LOG.md 2026-11-21). Its constant was fitted four decades above.
_VOCAB_OVER_LAW = 2
_TEXT_MARGIN = 1.5  # text prepared over what the final run is expected to read
_TAIL_SHARE, _LEAST_TAIL_SECONDS = 0.02, 12.0  # evaluation, samples, checks and report
_MOST_WORKERS = 8  # side by side; a rung has no more sizes than that, and each worker holds torch in memory
_SAFETY = 0.97  # of the seconds left, for a machine that slows down
_EVALUATIONS = 5  # of the final run, the last one included
# On the disk at once for each parameter of the final model: three checkpoints (one is written while two stay) of its
# weight and up to two moments, float32. The sweep's trunks are of smaller models and gone by then.
_BYTES_PER_PARAM = 3 * 3 * 4
_BELIEVABLE = 0.75  # of the speed that the table foretells
# Contexts by the final run's compute: attention's share of the FLOPs stays near a tenth (dev/LOG.md).
_CONTEXTS = ((2e13, 128), (3e15, 256), (1e17, 512), (1e19, 1024), (math.inf, 2048))


class Study:
    """The stages of one study; each reads what the ones before it wrote."""

    def __init__(self, config: StudyConfig, allowance: Allowance, directory: RunDirectory, progress: Progress) -> None:
        self.config, self.allowance, self.directory, self.progress = config, allowance, directory, progress
        self.n_workers = 1 if torch.cuda.is_available() else min(config.n_threads, _MOST_WORKERS)
        self.worker_threads = max(1, config.n_threads // self.n_workers)

    def open_pool(self, stack: contextlib.ExitStack) -> Callable[[], WorkerPool]:
        """Give the workers, started when they are first asked for and ended with the stack."""
        started: list[WorkerPool] = []

        def pool() -> WorkerPool:
            if not started:
                started.append(stack.enter_context(WorkerPool(self.n_workers)))
            return started[0]

        return pool

    def measure(self, pool: Callable[[], WorkerPool]) -> dict[str, Any]:
        """Measure the machine, once; return env.json."""
        if self.directory.is_finished("measure"):
            return read_json(self.directory.environment)
        threads = self.config.n_threads
        with self.directory.stage("measure"):
            self.progress.stage("measure", f"seconds per step over shapes, {threads} threads")
            workers = pool()  # their imports run beside what follows
            environment = describe_machine(threads)
            seconds = self.allowance.amount if self.allowance.kind == "seconds" else math.inf
            seconds_each = min(0.5, seconds / 600)
            # 1e11 FLOP/s: the right decade for any machine of today; it only centres the sizes that are measured.
            rough_flops = seconds * 6e10 * threads if seconds < math.inf else self.allowance.amount * 0.7
            context = self.config.context or _context_for(rough_flops)
            configs = sizes_to_measure(
                prior_params(rough_flops / 300),
                2 * prior_params(rough_flops),
                vocab=self.config.vocab or _GUESSED_VOCAB,
                context=context,
            )
            dtype = self.config.dtype
            if dtype == "auto":
                dtype, _ = choose_dtype(configs[-1], threads, seconds_each)
            speeds = measure_speeds(
                configs,
                workers,
                threads=threads,
                worker_threads=self.worker_threads,
                dtype=dtype,
                seconds_each=seconds_each,
            )
            environment.update(dtype=dtype, context=context, n_workers=self.n_workers, speeds=speeds)
            write_json(self.directory.environment, environment)
        return environment

    def prepare(self, environment: dict[str, Any]) -> Manifest:
        """Prepare the text, once: a vocabulary and an amount that suit the final run."""
        if self.directory.is_finished("prepare"):
            return load_manifest(self.directory.prepared)
        speeds = machine_speeds(environment["speeds"], environment["n_workers"])
        ladder = self._design(speeds, _GUESSED_VOCAB, environment["context"])
        params = prior_params(ladder.final_flops)
        width = nearest_shape(params, vocab=_GUESSED_VOCAB, context=environment["context"]).d_model
        vocab = self.config.vocab or _VOCAB_OVER_LAW * vocab_for(ladder.final_flops, width)
        total = count_parameters(nearest_shape(params, vocab=vocab, context=environment["context"])).total
        require_space(
            self.directory.path, _BYTES_PER_PARAM * total, "the checkpoints and the model of a run of this budget"
        )
        wanted_bytes = _TEXT_MARGIN * _MOST_BYTES_PER_TOKEN * ladder.final_flops / 6 / params

        def report(done: int, total: int) -> None:
            self.directory.tick()
            self.progress.advance(done / max(total, 1), None, None)

        with self.directory.stage("prepare"):
            self.progress.stage("prepare", f"{', '.join(self.config.corpus)}: vocabulary {vocab}")
            return prepare(
                self.config.corpus,
                self.directory.prepared,
                vocab=vocab,
                max_bytes=max(1 << 20, int(wanted_bytes)),
                seed=self.config.seed,
                progress=report,
            )

    def sweep(self, environment: dict[str, Any], manifest: Manifest, pool: Callable[[], WorkerPool]) -> None:
        """Run the ladder, or the rest of it."""
        if self.directory.is_finished("sweep"):
            return
        speeds = machine_speeds(environment["speeds"], environment["n_workers"])
        ladder = self._ladder(environment, manifest, speeds)
        rungs = ", ".join(f"{flops:.1e}" for flops in ladder.rung_flops)
        with self.directory.stage("sweep") as fields:
            self.progress.stage("sweep", f"rungs at {rungs} FLOPs, {ladder.sizes_per_rung} sizes each")
            for note in ladder.notes:
                self.progress.stage("note", note)
            settings = SweepSettings(
                vocab=manifest.vocab,
                context=environment["context"],
                unique_tokens=float(manifest.train_tokens),
                dtype=environment["dtype"],
                device="auto",
                worker_threads=self.worker_threads,
                n_workers=environment["n_workers"],
                seed=self.config.seed,
            )
            records = run_sweep(self.directory, ladder, settings, pool(), self.progress)
            fields["flops"] = sum(record["flops_spent"] for record in records)
            # Nothing continues them now; removed before the stage is finished, or a kill in between would leave them.
            shutil.rmtree(self.directory.sweep / "trunks", ignore_errors=True)

    def _ladder(self, environment: dict[str, Any], manifest: Manifest, speeds: MachineSpeeds) -> Ladder:
        """Design the ladder and draw the items its models are asked, or read what an earlier start chose."""
        if self.directory.design.exists():
            ladder = Ladder(**read_json(self.directory.design)["ladder"])
            return replace(ladder, rung_flops=tuple(ladder.rung_flops), notes=tuple(ladder.notes))
        plain = self._design(speeds, manifest.vocab, environment["context"])
        item_sets, tokens, share = self._suites(plain, speeds, manifest, environment["context"])
        try:
            ladder = self._design(speeds, manifest.vocab, environment["context"], tokens)
        except BudgetError as error:
            if self.config.suite:
                raise BudgetError(f"{error}, or leave out suites, which take {100 * share:.0f} % of it") from None
            ladder, item_sets, tokens = plain, (), 0.0
        for one in item_sets:
            write_item_set(self.directory.suites, one)
        if item_sets:
            names = ", ".join(f"{one.suite.name} ({len(one.items)} items)" for one in item_sets)
            self.progress.stage("suites", f"{names}: about {100 * share:.1f} % of the budget")
        write_json(self.directory.design, {"schema": "design/1", "ladder": vars(ladder), "asking_tokens": tokens})
        return ladder

    def _suites(
        self, plain: Ladder, speeds: MachineSpeeds, manifest: Manifest, context: int
    ) -> tuple[tuple[ItemSet, ...], float, float]:
        """Draw the items and estimate what asking takes: sets, training tokens a model, and part of the budget."""
        near = _shape_near(manifest.vocab, context)
        item_sets = choose_items(self.config, self.allowance, manifest, context)
        middle = near(prior_params(plain.rung_flops[len(plain.rung_flops) // 2]))
        tokens = asking_tokens(item_sets, self.allowance, middle, manifest.tokenizer_folder, speeds)
        share = asking_share(plain, self.allowance, speeds, near, tokens)
        if item_sets and not self.config.suite and share > CHEAP_SHARE:
            told = f"own-words would take {100 * share:.1f} % of the budget and is not asked; --suite own-words asks it"
            self.progress.stage("suites", told)
            return (), 0.0, 0.0
        return item_sets, tokens, share

    def decide(self, environment: dict[str, Any], manifest: Manifest) -> TrainConfig:
        """Fit the law, choose size and tokens, and write law, forecast and plan before anything is trained."""
        if self.directory.is_finished("forecast"):
            return load_toml(TrainConfig, self.directory.plan)
        with self.directory.stage("forecast"):
            records = read_records(self.directory.trials, "trial/1")
            runs = ladder_runs(records)
            lr_scale = records[-1]["lr_scale"]
            top = best_of_top_rung(runs)
            unique, context = float(manifest.train_tokens), environment["context"]
            speeds = machine_speeds(environment["speeds"], environment["n_workers"])
            seed_sd = seed_scatter(records)
            near = nearest_shape(top.params, vocab=manifest.vocab, context=context)
            first = forecast_run(runs, near, 10 * top.tokens, unique, seed_sd)
            candidates = rank_candidates(
                first.law,
                self._affordable(speeds),
                top=top,
                vocab=manifest.vocab,
                context=context,
                unique_tokens=unique,
            )
            plan = self._plan(candidates[0].shape, candidates[0].tokens, environment, lr_scale)
            made = forecast_run(runs, plan.shape, plan.tokens, unique, seed_sd)
            heldout = heldout_windows(manifest, context, HELDOUT_TOKENS)
            record = forecast_record(
                made,
                plan.shape,
                plan.tokens,
                candidates,
                tokens_per_byte=heldout.tokens / heldout.bytes,
                unique_tokens=unique,
            )
            laws = fit_tasks(records)
            record["tasks"] = forecast_tasks(laws, record, records)
            write_json(self.directory.law, {**made.law_record(), "seed_sd": seed_sd, "tasks": laws_record(laws)})
            write_text(self.directory.plan, dump_toml(plan, plan_comments(record["law_hash"])))
            write_json(self.directory.forecast, record)
        for line in (forecast_sentence(record), *task_lines(record["tasks"])):
            self.progress.stage("forecast", line)
        return plan

    def train(self, plan: TrainConfig, manifest: Manifest, environment: dict[str, Any]) -> Transformer:
        """Train the planned model, continuing from its last checkpoint; one that is done is only loaded."""
        if self.directory.is_finished("train"):
            return self._job(plan, manifest, environment, lambda step: None).model
        steps = plan.schedule.steps
        params = count_parameters(plan.shape)
        with self.directory.stage("train") as fields:
            self.progress.stage(
                "train",
                f"{params.total:,} parameters, {plan.tokens:,} tokens, {steps:,} steps of {plan.batch_tokens:,}",
            )

            def report(step: Any) -> None:
                self.directory.tick()
                left = (steps - step.step) * step.step_seconds
                self.progress.advance(step.step / steps, step.loss, left)

            job = self._job(plan, manifest, environment, report)
            fields.update(flops=job.flops, tokens_per_s=job.tokens_per_s, mfu=job.mfu, warnings=list(job.warnings))
        return job.model

    def evaluate(self, model: Transformer, manifest: Manifest) -> None:
        """Save the model for the world, compare it with the forecast, write samples and check."""
        heldout = heldout_windows(manifest, model.shape.context, HELDOUT_TOKENS)
        with self.directory.stage("evaluate") as fields:
            self.progress.stage("evaluate", f"{heldout.tokens:,} held-out tokens, samples, a check with transformers")
            fields["flops"] = finish.export_and_evaluate(self.directory, model, manifest, heldout)
            finish.keep_draft(self.directory, count_parameters(model.shape).total)

    def report(self) -> None:
        """Write card and report of an evaluated model, and remove the checkpoints that only led to it."""
        # Two of weights and moments are several times the size of model/, which holds the same weights.
        shutil.rmtree(self.directory.train / "checkpoints", ignore_errors=True)
        if not self.directory.is_finished("report"):
            with self.directory.stage("report"):
                finish.write_card(self.directory)
                write_report(self.directory.path)
        self.progress.stage("report", str(self.directory.report))

    def _job(
        self, plan: TrainConfig, manifest: Manifest, environment: dict[str, Any], report: Callable[[Any], None]
    ) -> JobResult:
        return train_on_prepared(
            plan,
            manifest,
            self.directory.train,
            progress=report,
            peak_flops_per_s=environment["matmul_flops_per_s"][plan.run.dtype],
        )

    def _design(self, speeds: MachineSpeeds, vocab: int, context: int, tokens: float = 0.0) -> Ladder:
        return design_ladder(
            self.allowance,
            self._spent() + self._tail(),
            speeds,
            sweep_share=self.config.sweep_share,
            least_rung_flops=self.config.least_rung_flops,
            shape_near=_shape_near(vocab, context),
            asking_tokens=tokens,
        )

    def _affordable(self, speeds: MachineSpeeds) -> Callable[[ModelShape], tuple[float, float | None]]:
        left = self.allowance.amount - self._spent() - self._tail()
        asking = self._asking_tokens()

        def affordable(shape: ModelShape) -> tuple[float, float | None]:
            if self.allowance.kind == "flops":
                return left / training_flops_per_token(shape) - asking, None
            return left * _SAFETY * speeds.whole.tokens_per_s_of(shape) - asking, left * _SAFETY

        return affordable

    def _plan(self, shape: ModelShape, tokens: float, environment: dict[str, Any], lr_scale: float) -> TrainConfig:
        """Derive the final config; for a budget of time its own step is measured and decides the tokens."""
        options = RecipeOptions(
            lr_scale=lr_scale,
            dtype=environment["dtype"],
            threads=self.config.n_threads,
            seed=self.config.seed,
        )
        if self.allowance.kind == "seconds":
            expected = machine_speeds(environment["speeds"], environment["n_workers"]).whole.tokens_per_s_of(shape)
            tokens_per_s = self._measure_final(recipe_for(shape, tokens, options), expected)
            left = (self.allowance.amount - self._spent() - self._tail()) * _SAFETY
            left -= (_EVALUATIONS * HELDOUT_TOKENS * FORWARD_SHARE + self._asking_tokens()) / tokens_per_s
            tokens = max(left * tokens_per_s, 100.0 * shape.context)
        plan = recipe_for(shape, tokens, options)
        every = max(1, math.ceil(plan.schedule.steps / _EVALUATIONS))
        return replace(plan, run=replace(plan.run, evaluate_every=every, checkpoint_seconds=30.0))

    def _measure_final(self, config: TrainConfig, expected: float) -> float:
        """Measure the final run's tokens per second; what is far below the table is a busy moment, and asked again."""
        seconds = min(5.0, self.allowance.amount / 150)
        best = 0.0
        for attempt in range(3):
            best = max(best, measure_steps(config, seconds * (attempt + 1)).tokens_per_s)
            if best > _BELIEVABLE * expected:
                break
        return best

    def _spent(self) -> float:
        if self.allowance.kind == "seconds":
            return self.directory.spent_seconds()
        return sum(record["flops"] for record in self.directory.stage_records())

    def _asking_tokens(self) -> float:
        """What asking the final model costs, in tokens of its training; runs from before there were suites: nothing."""
        return float(read_json(self.directory.design).get("asking_tokens", 0.0))

    def _tail(self) -> float:
        if self.allowance.kind == "flops":
            return 0.0
        return max(_LEAST_TAIL_SECONDS, _TAIL_SHARE * self.allowance.amount)


def forecast_sentence(record: dict[str, Any]) -> str:
    """Say a forecast in one line."""
    doubt = "" if record["established"] else " (the law is not established: " + "; ".join(record["reasons"]) + ")"
    return (
        f"{record['params_matmul']:,} parameters on {record['tokens']:,.0f} tokens will reach a loss of "
        f"{record['loss']:.3f} nats per token, 90 % interval {record['low']:.3f} to {record['high']:.3f}{doubt}"
    )


def _shape_near(vocab: int, context: int) -> Callable[[float], ModelShape]:
    return lambda params: nearest_shape(params, vocab=vocab, context=context, d_min=LEAST_WIDTH)


def _context_for(flops: float) -> int:
    return next(context for most_flops, context in _CONTEXTS if flops <= most_flops)
