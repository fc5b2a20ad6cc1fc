"""The policy of a job: it resumes to the same bits, records what happened, and refuses to mix two runs."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace

import pytest
import torch

from chinchilla_lm.core import files
from chinchilla_lm.core.errors import CheckpointError, ConfigError, TrainingDiverged
from chinchilla_lm.core.records import read_records
from chinchilla_lm.laws.count import training_flops_per_token
from chinchilla_lm.train.checkpoint import latest_checkpoint, list_checkpoints
from chinchilla_lm.train.config import RunConfig
from chinchilla_lm.train.job import Interrupted, run_job
from chinchilla_lm.train.placement import choose_placement
from chinchilla_lm.train.recording import is_recorded
from chinchilla_lm.train.schedule import branch_schedule
from chinchilla_lm.train.segment import train_segment

STATE = ("weights.safetensors", "optimizer.safetensors", "random.safetensors")


def final_state(folder):
    path, _ = latest_checkpoint(folder / "checkpoints")
    return {name: (path / name).read_bytes() for name in STATE}


def run(config, batches, folder, **changes):
    return run_job(config, **{"batches": batches, "heldout_evaluate": None, "folder": folder, **changes})


def stop_at(step, number=signal.SIGTERM):
    def progress(record):
        if record.step == step:
            os.kill(os.getpid(), number)

    return progress


def evaluate_with_draws(model):
    """An evaluation that uses the random state, as sampling does."""
    assert not model.training
    torch.rand(100)
    return {"loss": 2.5, "loss_se": None, "bits_per_byte": 1.25, "tokens": 999}


def test_a_job_learns_and_says_what_it_took(make_config, batches, tmp_path):
    config = make_config(steps=60, decay_steps=20)
    seen = []
    result = run(config, batches, tmp_path, progress=seen.append, peak_flops_per_s=1e12)
    assert result.step == 60
    assert result.tokens == config.tokens == 60 * 32
    assert len(seen) == 60
    assert result.loss == seen[-1].loss < 0.7 * math.log(32)
    assert result.flops == config.tokens * training_flops_per_token(config.shape)
    assert result.tokens_per_s == pytest.approx(result.tokens / sum(record.step_seconds for record in seen))
    assert result.mfu == pytest.approx(result.tokens_per_s * training_flops_per_token(config.shape) / 1e12)
    assert (result.evaluation, result.resumed_from, result.warnings) == (None, None, ())
    assert not result.model.training


def test_records_have_the_agreed_fields(make_config, batches, tmp_path):
    config = make_config(evaluate_every=5)
    result = run(config, batches, tmp_path, heldout_evaluate=evaluate_with_draws, peak_flops_per_s=1e12)
    steps = read_records(tmp_path / "records.jsonl", "step/1")
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert set(steps[0]) == {
        *("schema", "step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "elapsed_seconds")
    }
    evaluations = read_records(tmp_path / "records.jsonl", "evaluation/1")
    assert [record["step"] for record in evaluations] == [5, 10, 12]
    assert evaluations[0] == {
        **{"schema": "evaluation/1", "step": 5, "tokens": 160, "loss": 2.5, "loss_se": None, "bits_per_byte": 1.25}
    }
    assert result.evaluation == {key: value for key, value in evaluations[-1].items() if key != "schema"}


def test_long_jobs_record_a_thinned_curve():
    kept = [step for step in range(1, 10_001) if is_recorded(step, 10_000)]
    assert kept == [*range(1, 11), *range(20, 10_001, 20)]
    assert all(is_recorded(step, 400) for step in range(1, 401))
    assert is_recorded(1999, 1999)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_call_goes_on_to_the_same_bits(make_config, batches, tmp_path, number, exit_code):
    config = make_config(evaluate_every=4)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(config, batches, tmp_path / "whole")
    with pytest.raises(Interrupted, match="step 6 of 12.*same command resumes") as caught:
        run(config, batches, tmp_path / "cut", progress=stop_at(6, number))
    assert caught.value.exit_code == exit_code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    result = run(config, batches, tmp_path / "cut")
    assert result.resumed_from == 6
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "whole")


def test_work_after_the_checkpoint_is_done_again_and_recorded_once(make_config, batches, tmp_path):
    config = make_config(evaluate_every=4)

    def crash(record):
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if record.step == 9:
            raise RuntimeError("power cut")

    with pytest.raises(Interrupted):
        run(config, batches, tmp_path, progress=crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run(config, batches, tmp_path, progress=crash, heldout_evaluate=evaluate_with_draws)
    assert read_records(tmp_path / "records.jsonl")[-1]["step"] == 9
    result = run(config, batches, tmp_path, heldout_evaluate=evaluate_with_draws)
    assert result.resumed_from == 3
    assert [r["step"] for r in read_records(tmp_path / "records.jsonl", "step/1")] == list(range(1, 13))
    assert [r["step"] for r in read_records(tmp_path / "records.jsonl", "evaluation/1")] == [4, 8, 12]
    elapsed = [r["elapsed_seconds"] for r in read_records(tmp_path / "records.jsonl", "step/1")]
    assert elapsed == sorted(elapsed)
    run(config, batches, tmp_path / "whole")
    assert final_state(tmp_path) == final_state(tmp_path / "whole")


def test_a_finished_job_is_only_loaded(make_config, batches, tmp_path):
    first = run(make_config(), batches, tmp_path, heldout_evaluate=evaluate_with_draws)
    before = (tmp_path / "records.jsonl").read_bytes()

    def forbidden(_):
        raise AssertionError("done already")

    again = run(make_config(), batches, tmp_path, heldout_evaluate=forbidden, progress=forbidden)
    assert (again.step, again.tokens, again.loss) == (first.step, first.tokens, first.loss)
    assert again.evaluation == first.evaluation
    assert all(torch.equal(p, again.model.get_parameter(n)) for n, p in first.model.named_parameters())
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_a_kill_before_the_last_evaluation_leaves_only_that_to_do(make_config, batches, tmp_path):
    run(make_config(), batches, tmp_path)
    result = run(make_config(), batches, tmp_path, heldout_evaluate=evaluate_with_draws)
    assert result.evaluation["step"] == 12
    assert len(read_records(tmp_path / "records.jsonl", "evaluation/1")) == 1


def test_evaluating_does_not_change_the_weights(make_config, batches, tmp_path):
    run(make_config(), batches, tmp_path / "never")
    run(make_config(evaluate_every=1), batches, tmp_path / "always", heldout_evaluate=evaluate_with_draws)
    assert final_state(tmp_path / "never") == final_state(tmp_path / "always")


def test_a_corrupt_newest_checkpoint_is_passed_over_with_a_warning(make_config, batches, tmp_path):
    config = make_config(checkpoint_seconds=0.0, keep_checkpoints=3)
    with pytest.raises(Interrupted):
        run(config, batches, tmp_path / "cut", progress=stop_at(8))
    newest = list_checkpoints(tmp_path / "cut" / "checkpoints")[-1]
    content = (newest / "optimizer.safetensors").read_bytes()
    (newest / "optimizer.safetensors").write_bytes(content[:-1])
    result = run(config, batches, tmp_path / "cut")
    assert result.resumed_from == 7
    assert "step-000000008/optimizer.safetensors is corrupt" in result.warnings[0]
    run(config, batches, tmp_path / "whole")
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "whole")


def test_the_newest_checkpoints_stay(make_config, batches, tmp_path):
    run(make_config(checkpoint_seconds=0.0, keep_checkpoints=3), batches, tmp_path)
    assert [path.name[-2:] for path in list_checkpoints(tmp_path / "checkpoints")] == ["10", "11", "12"]


def test_checkpoints_that_the_disk_cannot_hold_are_refused_before_the_first_update(
    make_config, batches, tmp_path, monkeypatch
):
    config = make_config(keep_checkpoints=2)
    run_job(config, batches=batches, heldout_evaluate=None, folder=tmp_path / "whole")
    newest = list_checkpoints(tmp_path / "whole" / "checkpoints")[-1]
    size = sum((newest / f"{name}.safetensors").stat().st_size for name in ("weights", "optimizer"))
    monkeypatch.setattr(files, "free_bytes", lambda path: int(1.8 * size))  # room for one, not for three
    with pytest.raises(CheckpointError, match=r"3 checkpoints of .* \(one is written while 2 stay\) need about "):
        run_job(config, batches=batches, heldout_evaluate=None, folder=tmp_path / "small")
    assert not (tmp_path / "small").exists()
    run_job(config, batches=batches, heldout_evaluate=None, folder=tmp_path / "whole")  # done: it only loads
    monkeypatch.setattr(files, "free_bytes", lambda path: int(3.1 * size))
    run_job(config, batches=batches, heldout_evaluate=None, folder=tmp_path / "small")


def test_another_config_or_text_in_the_same_folder_is_refused(make_config, batches, other_batches, tmp_path):
    run(make_config(), batches, tmp_path)
    with pytest.raises(CheckpointError, match="another config"):
        run(make_config(lr_matrix=0.01), batches, tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        run(make_config(d_model=24), batches, tmp_path)
    with pytest.raises(CheckpointError, match="other text"):
        run(make_config(), other_batches, tmp_path)
    run(make_config(micro_batch=2, threads=2), batches, tmp_path)


def test_divergence_keeps_the_checkpoints_before_it(make_config, batches, tmp_path):
    def poisoned(model, batch):
        losses_bt = model.token_losses(*batch)
        poisoned.calls += 1
        return losses_bt.sum() * (float("inf") if poisoned.calls == 6 else 1), losses_bt.numel()

    poisoned.calls = 0
    with pytest.raises(TrainingDiverged, match="step 6"):
        run(make_config(checkpoint_seconds=0.0), batches, tmp_path, objective=poisoned)
    assert latest_checkpoint(tmp_path / "checkpoints")[0].name == "step-000000005"


def test_a_branch_equals_an_independent_run(make_config, batches, tmp_path):
    """Trunk to 8, branch 8 -> 12; trunk 8 -> 16, branch 16 -> 20: as two runs of 12 and 20 steps, bit for bit."""
    trunk = make_config(steps=1000, decay_steps=0)
    checkpoint, spent = None, 0.0
    for branch_step in (8, 16):
        grown = train_segment(trunk, batches=batches, start=checkpoint, stop_step=branch_step, save_to=tmp_path)
        checkpoint = grown.checkpoint
        cooled = replace(trunk, schedule=branch_schedule(trunk.schedule, branch_step=branch_step, decay_steps=4))
        branch = train_segment(cooled, batches=batches, start=checkpoint)
        spent += grown.flops + branch.flops
        alone = train_segment(cooled, batches=batches)
        assert (branch.step, branch.tokens) == (alone.step, alone.tokens) == (branch_step + 4, (branch_step + 4) * 32)
        assert branch.curve == alone.curve[-len(branch.curve) :]
        assert all(torch.equal(p, branch.model.get_parameter(n)) for n, p in alone.model.named_parameters())
    assert spent == pytest.approx((16 + 4 + 4) * 32 * training_flops_per_token(trunk.shape))


def test_a_segment_equals_a_job(make_config, batches, tmp_path):
    segment = train_segment(make_config(), batches=batches, save_to=tmp_path / "segment" / "checkpoints")
    run(make_config(), batches, tmp_path / "job")
    assert final_state(tmp_path / "segment") == final_state(tmp_path / "job")
    assert segment.step == 12


def test_a_checkpoint_of_another_trunk_is_refused(make_config, batches, tmp_path):
    trunk = make_config(steps=1000, decay_steps=0)
    grown = train_segment(trunk, batches=batches, stop_step=8, save_to=tmp_path)
    for config, stop_step in ((make_config(steps=1000, decay_steps=0, lr_matrix=0.5), 12), (trunk, 6)):
        with pytest.raises(CheckpointError, match="does not lead to step"):
            train_segment(config, batches=batches, start=grown.checkpoint, stop_step=stop_step)


def test_bfloat16_keeps_float32_masters_and_learns(make_config, batches, tmp_path):
    result = run(make_config(dtype="bfloat16", steps=60, decay_steps=20), batches, tmp_path)
    assert result.model.compute_dtype == torch.bfloat16
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}
    assert result.loss < 0.7 * math.log(32)


def test_a_device_that_is_absent_is_refused():
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(ConfigError, match=f'"{absent}" is not on this machine.*write "auto"'):
        choose_placement(RunConfig(device=absent))
