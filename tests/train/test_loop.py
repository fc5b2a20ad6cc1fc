"""THE loop against a plain torch loop, accumulation against the full batch, divergence, stopping and going on."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from torch import nn

from chinchilla_lm.core.errors import TrainingDiverged
from chinchilla_lm.model.transformer import Transformer, initialise
from chinchilla_lm.train.config import ScheduleConfig
from chinchilla_lm.train.loop import LoopPlan, train
from chinchilla_lm.train.objective import next_token_objective
from chinchilla_lm.train.optimizer import build_optimizer
from chinchilla_lm.train.placement import Placement
from chinchilla_lm.train.schedule import learning_rate_factor

CPU = Placement()


def build(config):
    model = Transformer(config.shape)
    initialise(model, 0)
    torch.manual_seed(0)
    return model, build_optimizer(model, config.optimizer)


def plan_of(config, **changes):
    fields = {
        "schedule": config.schedule,
        "micro_batch": config.batch.micro_batch,
        "clip_norm": config.optimizer.clip_norm,
    }
    return LoopPlan(**{**fields, **changes})


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_loop_equals_a_plain_torch_loop(make_config, batches):
    config = make_config(dropout=0.0, clip_norm=0.5)
    model, optimizer = build(config)
    records = list(train(model, batches, next_token_objective, optimizer, plan_of(config), CPU))

    plain, plain_optimizer = build(config)
    for step in range(config.schedule.steps):
        inputs_bt, targets_bt = map(torch.from_numpy, batches.at(step))
        loss = nn.functional.cross_entropy(plain(inputs_bt).flatten(0, 1), targets_bt.flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group in plain_optimizer.param_groups:
            group["lr"] = group["lr_peak"] * learning_rate_factor(step, config.schedule)
        plain_optimizer.step()
        plain_optimizer.zero_grad()
        assert records[step].loss == pytest.approx(loss.item(), rel=1e-4)
        assert records[step].grad_norm == pytest.approx(norm.item(), rel=1e-3)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, plain.get_parameter(name).detach(), rtol=1e-3, atol=1e-4)


def test_records_say_what_happened(make_config, batches):
    config = make_config()
    model, optimizer = build(config)
    records = list(train(model, batches, next_token_objective, optimizer, plan_of(config), CPU))
    assert [record.step for record in records] == list(range(1, 13))
    assert [record.tokens for record in records] == [32 * step for step in range(1, 13)]
    assert records[0].loss == pytest.approx(math.log(config.shape.vocab), rel=1e-6)  # the head starts at zero
    for record in records:
        assert record.lr == pytest.approx(0.02 * learning_rate_factor(record.step - 1, config.schedule))
        assert record.step_seconds > 0
    assert records[-1].loss < records[0].loss


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_accumulation_equals_the_full_batch(make_config, batches, micro_batch):
    config = make_config(dropout=0.0)
    outcomes = []
    for rows in (4, micro_batch):
        model, optimizer = build(config)
        plan = plan_of(config, micro_batch=rows, stop_step=1)
        (record,) = train(model, batches, next_token_objective, optimizer, plan, CPU)
        outcomes.append((record, {n: optimizer.state[p]["exp_avg"] for n, p in model.named_parameters()}))
    (full, full_gradient), (parts, parts_gradient) = outcomes
    assert parts.loss == pytest.approx(full.loss, rel=1e-6)
    assert parts.grad_norm == pytest.approx(full.grad_norm, rel=1e-5)
    for name, gradient in full_gradient.items():
        torch.testing.assert_close(parts_gradient[name], gradient, rtol=1e-5, atol=1e-7)


def test_micro_batches_of_unequal_target_counts_weigh_each_target_once(make_config, batches):
    """The mean of means would be another gradient; the mask leaves 1, 2, 3 and 4 targets in the four rows."""

    def masked(model, batch):
        inputs_bt, targets_bt = batch
        counts_b1 = inputs_bt[:, :1] % 4 + 1
        keep_bt = torch.arange(targets_bt.shape[1]) < counts_b1
        return (model.token_losses(inputs_bt, targets_bt) * keep_bt).sum(), int(keep_bt.sum())

    config = make_config(dropout=0.0)
    norms = []
    for rows in (4, 1):
        model, optimizer = build(config)
        records = list(train(model, batches, masked, optimizer, plan_of(config, micro_batch=rows, stop_step=3), CPU))
        norms.append([(record.tokens, record.loss, record.grad_norm) for record in records])
    assert norms[0] == [(t, pytest.approx(x, rel=1e-4), pytest.approx(g, rel=1e-3)) for t, x, g in norms[1]]


def test_stopping_and_going_on_is_bit_identical(make_config, batches):
    config = make_config()
    model, optimizer = build(config)
    whole = list(train(model, batches, next_token_objective, optimizer, plan_of(config), CPU))

    again, again_optimizer = build(config)
    first = list(train(again, batches, next_token_objective, again_optimizer, plan_of(config, stop_step=5), CPU))
    plan = plan_of(config, start_step=5, start_tokens=first[-1].tokens)
    rest = list(train(again, batches, next_token_objective, again_optimizer, plan, CPU))
    assert [(r.step, r.tokens, r.loss) for r in first + rest] == [(r.step, r.tokens, r.loss) for r in whole]
    assert all(torch.equal(weight, again.get_parameter(name)) for name, weight in weights(model).items())


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_divergence_leaves_the_last_good_weights(make_config, batches, poison):
    calls = []

    def poisoned(model, batch):
        loss_sum, count = next_token_objective(model, batch)
        calls.append(1)
        if len(calls) < 4:
            return loss_sum, count
        if poison == "loss":
            return loss_sum * float("nan"), count
        return loss_sum + (model.embedding.sum() * 0).sqrt(), count  # d sqrt(x) / dx at 0 is infinite, the loss is not

    config = make_config()
    model, optimizer = build(config)
    steps = train(model, batches, poisoned, optimizer, plan_of(config), CPU)
    for _ in range(3):
        next(steps)
    good = weights(model)
    with pytest.raises(TrainingDiverged, match=r"step 4: .*lr 0\.02.*half") as caught:
        next(steps)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(weight, good[name]) for name, weight in weights(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_clipping_scales_the_update_not_the_record(make_config, batches):
    config = make_config(dropout=0.0, weight_decay=0.0)
    moments = []
    for clip in (1e-3, float("inf")):
        model, optimizer = build(config)
        (record,) = train(
            model, batches, next_token_objective, optimizer, plan_of(config, clip_norm=clip, stop_step=1), CPU
        )
        norm = torch.stack([optimizer.state[p]["exp_avg"].norm() for p in model.parameters()]).norm() / 0.1
        moments.append((record.grad_norm, norm.item()))
    (clipped_record, clipped), (free_record, free) = moments
    assert clipped_record == free_record
    assert clipped == pytest.approx(1e-3, rel=1e-4)
    assert free == pytest.approx(free_record, rel=1e-4)


@pytest.mark.parametrize("was_enabled", [True, False])
def test_garbage_collection_is_restored_however_the_loop_ends(make_config, batches, was_enabled):
    config = make_config()
    model, optimizer = build(config)
    try:
        if not was_enabled:
            gc.disable()
        steps = train(model, batches, next_token_objective, optimizer, plan_of(config), CPU)
        next(steps)
        assert not gc.isenabled()
        steps.close()
        assert gc.isenabled() == was_enabled
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()


def test_the_loop_needs_no_transformer():
    """Any module, any objective: a regression to a known answer."""

    class Points:
        def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
            x_b1 = np.random.default_rng(step).normal(size=(16, 1)).astype(np.float32)
            return x_b1, 3 * x_b1 + 1

    def squared_error(model, batch):
        x_b1, y_b1 = batch
        return (model(x_b1) - y_b1).square().sum(), len(x_b1)

    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_peak": 0.1}], lr=0.1)
    plan = LoopPlan(schedule=ScheduleConfig(kind="linear", steps=100), micro_batch=5, clip_norm=float("inf"))
    list(train(model, Points(), squared_error, optimizer, plan, CPU))
    assert model.weight.item() == pytest.approx(3, abs=1e-3)
    assert model.bias.item() == pytest.approx(1, abs=1e-3)
