"""Any tuner of peft by name: its folder loads in peft with head and labels, merged it answers the same; refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from chinchilla_lm.cli.tune_options import make_options, read_config
from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.merging import merge_adapters
from chinchilla_lm.tune.peft_tuners import make_tuner_config
from chinchilla_lm.tune.saving import save_tuned
from chinchilla_lm.tune.tuning import tune

from .test_saving import ask_pipeline, make_run, probabilities

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
MAPS = ["q_proj", "v_proj", "down_proj"]
TUNERS: dict[str, dict[str, Any]] = {
    "DoRA": {"peft_type": "LORA", "use_dora": True, "r": 4, "target_modules": MAPS},
    "LoHa": {"peft_type": "LOHA", "r": 4, "alpha": 8, "target_modules": MAPS},
    "VeRA": {"peft_type": "VERA", "r": 8, "d_initial": 0.1, "target_modules": MAPS},
    "OFT": {"peft_type": "OFT", "oft_block_size": 8, "target_modules": MAPS},
    "norms": {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]},
}


@pytest.mark.parametrize(
    ("name", "kind"), [("DoRA", "qwen3"), ("LoHa", "llama"), ("VeRA", "qwen3"), ("OFT", "llama"), ("norms", "qwen3")]
)
def test_saved_loaded_and_merged_it_answers_the_same(tiny_folder, sentiment_rows, tmp_path, name, kind):
    rows = sentiment_rows[:8]
    settings = {"method": "peft", "peft_config": json.dumps(TUNERS[name]), "head": "fresh"}
    model, task, config = make_run(tiny_folder(kind), sentiment_rows, **settings)
    assert model.backbone.form == "hub"
    untouched = [p for p in model.backbone.parameters() if not p.requires_grad]
    assert sum(p.numel() for p in untouched) > 10 * sum(p.numel() for p in model.backbone.added_parameters)  # type: ignore[attr-defined]
    expected = probabilities(task, model, rows)
    zero_shot = torch.tensor([each["probabilities"] for each in task.zero_shot(load_backbone(config), rows) or []])
    assert (expected - zero_shot).abs().max() > 0.01  # it has learnt something
    save_tuned(model, task, tmp_path / "model", config)
    torch.testing.assert_close(ask_pipeline(tmp_path / "model", rows, task.labels), expected, atol=1e-4, rtol=0)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_folder(kind), num_labels=2, dtype=torch.float32
    )
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [tokenizer(row["text"], return_tensors="pt") for row in rows]
    with torch.no_grad():
        asked = [{key: text[key] for key in ("input_ids", "attention_mask")} for text in texts]
        got = torch.cat([loaded(**each).logits for each in asked]).softmax(dim=-1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    merge_adapters(tiny_folder(kind), [tmp_path / "adapter"], tmp_path / "merged")
    torch.testing.assert_close(ask_pipeline(tmp_path / "merged", rows, task.labels), expected, atol=1e-4, rtol=0)


def test_a_whole_run_and_its_record(tiny_folder, configure):
    config = configure("qwen3", method="peft", peft_config=json.dumps(TUNERS["LoHa"]), steps=2, epochs=1.0)
    record = tune(config).record
    assert record["method"] == "peft"
    assert json.loads(record["settings"]["peft_config"]) == TUNERS["LoHa"]
    assert record["cost"]["trainable_parameters"] > 0


def test_the_command_line_names_a_file(tmp_path):
    path = tmp_path / "dora.json"
    path.write_text(json.dumps(TUNERS["DoRA"]))
    options = make_options()(model="m", train="t", method="peft", peft_config=str(path))
    config = read_config("text-classification", options, None)
    assert json.loads(config.peft_config or "") == TUNERS["DoRA"]
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config("text-classification", replace(options, peft_config=str(tmp_path / "none.json")), None)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"peft_type": "LOHAA"}, "none of peft's; did you mean 'LOHA'"),
        ({"peft_type": "LOHA", "rank": 4}, "no field of peft's LoHaConfig"),
        ({"peft_type": "LOHA", "modules_to_save": ["score"]}, "set by the task"),
        ({"peft_type": "ADALORA", "total_step": 10}, "no checkpoint holds"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "virtual tokens"),
        ({"peft_type": "BOFT", "boft_block_size": 4, "boft_block_num": 4}, "peft refuses these settings of BOFT"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(settings, match):
    with pytest.raises(ConfigError, match=match) as caught:
        make_tuner_config(json.dumps(settings))
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_fit_are_refused(tiny_folder, sentiment_rows):
    for given, match in (
        ({"method": "peft"}, "must be a JSON object"),
        ({"method": "peft", "peft_config": "[1]"}, "must be a JSON object"),
        ({"method": "lora", "peft_config": '{"peft_type": "LOHA"}'}, "leave it out"),
        ({"method": "peft", "peft_config": '{"peft_type": "LOHA"}', "backbone": "own"}, "backbone of transformers"),
    ):
        with pytest.raises(ConfigError, match=match):
            TuneConfig(task="text-classification", model="m", train="t", out="o", **given)
    wrong = json.dumps({"peft_type": "LOHA", "target_modules": ["nowhere"]})
    with pytest.raises(ConfigError, match="does not fit this model"):
        make_run(tiny_folder("qwen3"), sentiment_rows, method="peft", peft_config=wrong, head="fresh")
