"""plan.toml is the config: exact round trip, strict, conflicts refused."""

from __future__ import annotations

import pytest

from chinchilla_lm.core.config import dump_toml, load_toml
from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.train.config import ScheduleConfig, TrainConfig


def test_toml_round_trip_is_exact(make_config, tmp_path):
    config = make_config(lr_matrix=0.1 + 0.2, clip_norm=float("inf"), kind="cosine", decay_steps=0, dtype="bfloat16")
    path = tmp_path / "plan.toml"
    path.write_text(dump_toml(config, {"optimizer.lr_matrix": "k / d sqrt(B / 900)"}))
    assert "# k / d" in path.read_text()
    assert load_toml(TrainConfig, path) == config


def test_unknown_key_names_the_nearest(make_config, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(dump_toml(make_config(), {}).replace("warmup_steps", "warmup_step"))
    with pytest.raises(ConfigError, match=r"(?s)warmup_step.*warmup_steps"):
        load_toml(TrainConfig, path)


def test_tokens_are_targets_of_the_whole_schedule(make_config):
    config = make_config(rows=6, micro_batch=2, context=8, steps=10)
    assert config.batch_tokens == 48
    assert config.tokens == 480


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"micro_batch": 5}, "batch.micro_batch"),
        ({"lr_matrix": 0.0}, "optimizer.lr_matrix"),
        ({"lr_matrix": float("nan")}, "optimizer.lr_matrix"),
        ({"beta2": 1.0}, "optimizer.beta2"),
        ({"steps": 5}, "schedule.decay_steps"),
        ({"kind": "linear"}, "schedule.decay_steps"),
        ({"final_fraction": 1.5}, "schedule.final_fraction"),
        ({"threads": 0}, "run.threads"),
        ({"keep_checkpoints": 0}, "run.keep_checkpoints"),
    ],
)
def test_conflicts_are_refused_in_one_line(make_config, change, key):
    with pytest.raises(ConfigError) as caught:
        make_config(**change)
    message = str(caught.value)
    assert message.startswith(key)
    assert ";" in message
    assert "\n" not in message


def test_fingerprint_names_what_decides_the_weights(make_config):
    config = make_config()
    same = make_config(micro_batch=2, checkpoint_seconds=1.0, evaluate_every=3, keep_checkpoints=5)
    assert same.fingerprint() == config.fingerprint()
    for change in ({"lr_matrix": 0.03}, {"steps": 13}, {"d_model": 24}, {"dtype": "bfloat16"}, {"rows": 8}):
        assert make_config(**change).fingerprint() != config.fingerprint()


def test_trunk_fingerprint_leaves_out_the_end_of_the_schedule(make_config):
    trunk, branch = make_config(steps=50, decay_steps=0), make_config(steps=20, decay_steps=4)
    assert trunk.trunk_fingerprint() == branch.trunk_fingerprint()
    assert trunk.trunk_fingerprint() != make_config(warmup_steps=3).trunk_fingerprint()


def test_a_schedule_that_warms_up_all_the_way_is_allowed():
    assert ScheduleConfig(steps=3, warmup_steps=3).decay_steps == 0
