"""Saved folders: transformers' own pipelines and peft answer as the tuned model did, head and labels included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.defaults import resolve
from chinchilla_lm.tune.freezing import choose_parameters, make_optimizer
from chinchilla_lm.tune.saving import save_tuned
from chinchilla_lm.tune.task import Task, TunedModel, make_task

from .conftest import RELATED

transformers = pytest.importorskip("transformers")


def make_run(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[TunedModel, Task, TuneConfig]:
    """A model after three real updates, in eval mode."""
    given = {"task": "text-classification", "train": "t", "out": "o", "rows": len(rows), "dtype": "float32"} | settings
    config, _ = resolve(TuneConfig(model=str(folder), **given), context=128)
    backbone: Any = load_backbone(config)
    task = make_task(config, rows, backbone)
    torch.manual_seed(0)
    model = TunedModel(backbone, task.make_head(backbone))
    optimizer = make_optimizer(choose_parameters(model, config), config)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    batch = tuple(torch.from_numpy(array) for array in task.collate(task.encode(rows, is_training=True)))
    for _ in range(3):
        task.objective(model, batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), task, config


def probabilities(task: Any, model: TunedModel, rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([each["probabilities"] for each in task.predict(model, rows)])


def ask_pipeline(folder: Path, rows: list[dict[str, Any]], labels: tuple[str, ...], **how: Any) -> torch.Tensor:
    """Probabilities by transformers' pipeline on the folder, in the order of our labels."""
    pipe = transformers.pipeline("text-classification", model=str(folder), device="cpu", **how)
    answers = pipe([row["text"] for row in rows], top_k=None, batch_size=len(rows))
    return torch.tensor([[{a["label"]: a["score"] for a in one}[label] for label in labels] for one in answers])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen3", {"method": "lora"}),
        ("llama", {"method": "full", "head": "fresh"}),
        ("gpt2", {"method": "lora"}),
        ("gpt2", {"method": "top-k", "top_k": 1, "head": "fresh"}),
        ("bert", {"method": "lora"}),
        ("llama", {"method": "ia3"}),
        ("qwen3", {"method": "full", "mask": "bidirectional"}),
    ],
)
def test_the_pipeline_on_the_folder_equals_the_tuned_model(tiny_folder, sentiment_rows, tmp_path, kind, settings):
    model, task, config = make_run(tiny_folder(kind), sentiment_rows, **settings)
    expected = probabilities(task, model, sentiment_rows)
    save_tuned(model, task, tmp_path / "model", config)
    # Learned positions count from the first token, padding or not: transformers is wrong there with left padding.
    for side in ("right",) if kind in ("gpt2", "bert") else ("right", "left"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", padding_side=side)
        got = ask_pipeline(tmp_path / "model", sentiment_rows, task.labels, tokenizer=tokenizer)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["label2id"] == {"negative": 0, "positive": 1}
    assert saved["architectures"][0].endswith("ForSequenceClassification")
    torch.testing.assert_close(probabilities(task, model, sentiment_rows), expected, atol=1e-6, rtol=0)  # untouched


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("qwen3", "lora"),
        ("llama", "lora"),
        ("gpt2", "lora"),
        ("bert", "lora"),
        ("llama", "ia3"),
        ("bert", "ia3"),
        ("qwen3", "prompt"),
        ("gpt2", "prompt"),
        ("llama", "prefix"),
    ],
)
def test_peft_loads_the_adapter_with_head_and_labels(tiny_folder, sentiment_rows, tmp_path, kind, method):
    peft = pytest.importorskip("peft")
    rows = sentiment_rows[:6]
    model, task, config = make_run(tiny_folder(kind), sentiment_rows, method=method, head="fresh", virtual_tokens=4)
    expected = probabilities(task, model, rows)
    save_tuned(model, task, tmp_path / "model", config)
    described = json.loads((tmp_path / "adapter" / "task.json").read_text())
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        described["base"], num_labels=len(described["labels"]), dtype=torch.float32
    )
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    base.config.pad_token_id = tokenizer.pad_token_id
    with (
        torch.no_grad()
    ):  # one by one: behind virtual embeddings transformers finds no padding and reads the last place
        texts = [tokenizer(row["text"], return_tensors="pt") for row in rows]
        asked = [{name: text[name] for name in ("input_ids", "attention_mask")} for text in texts]
        got = torch.cat([loaded(**each).logits for each in asked]).softmax(dim=-1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert described["labels"] == ["negative", "positive"]


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_a_merged_adapter_is_the_saved_model_and_a_stack_of_halves_is_the_adapter(
    tiny_folder, sentiment_rows, tmp_path, kind
):
    from chinchilla_lm.tune.merging import merge_adapters

    model, task, config = make_run(tiny_folder(kind), sentiment_rows, method="lora", head="fresh")
    expected = probabilities(task, model, sentiment_rows)
    save_tuned(model, task, tmp_path / "model", config)
    adapter = tmp_path / "adapter"
    merge_adapters(tiny_folder(kind), [adapter], tmp_path / "merged")
    merge_adapters(tiny_folder(kind), [adapter, adapter], tmp_path / "stacked", weights=[0.75, 0.25])
    for name in ("merged", "stacked"):
        got = ask_pipeline(tmp_path / name, sentiment_rows, task.labels)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_what_cannot_be_merged_is_refused(tiny_folder, sentiment_rows, tmp_path):
    from chinchilla_lm.core.errors import ConfigError, ModelError
    from chinchilla_lm.tune.merging import merge_adapters

    model, task, config = make_run(tiny_folder("qwen3"), sentiment_rows, method="prompt", head="fresh")
    save_tuned(model, task, tmp_path / "model", config)
    with pytest.raises(ModelError, match="virtual tokens"):
        merge_adapters(tiny_folder("qwen3"), [tmp_path / "adapter"], tmp_path / "merged")
    with pytest.raises(ConfigError, match="one weight each"):
        merge_adapters(tiny_folder("qwen3"), [tmp_path / "adapter"], tmp_path / "merged", weights=[1.0, 2.0])


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_serve_answers_as_the_tuned_model(tiny_folder, sentiment_rows, tmp_path, kind):
    from chinchilla_lm.serve.served_model import load_served_model

    rows = sentiment_rows[:8]
    model, task, config = make_run(tiny_folder(kind), sentiment_rows, method="lora")
    save_tuned(model, task, tmp_path / "model", config)
    served: Any = load_served_model(tmp_path)
    got = [served.classifier.probabilities(served.tokenizer.encode(row["text"]).ids) for row in rows]
    torch.testing.assert_close(torch.tensor(got), probabilities(task, model, rows), atol=1e-5, rtol=0)
    served.close(0.1)


NER = [
    {"tokens": ["Anna", "Smith", "lives", "in", "London", "."], "tags": ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]},
    {"tokens": ["the", "dog", "ran", "to", "Paris"], "tags": ["O", "O", "O", "O", "B-LOC"]},
]
SPAN = [
    {
        "question": "Who wrote the play ?",
        "context": "The play was written by Anna Smith in London .",
        "answers": [{"text": "Anna Smith", "start": 24}],
    }
]
RELATION = [
    {"text": "Anna lives in London", "head": [0, 4], "tail": [14, 20], "label": label, "head_type": "PER"}
    for label in ("lives_in", "none")
]


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize(
    ("task_name", "rows", "settings"),
    [
        ("token-classification", NER, {}),
        ("question-answering", SPAN, {"head": "span"}),
        ("relation-extraction", RELATION, {}),
        ("relation-extraction", RELATION, {"head": "markers"}),
    ],
)
def test_heads_of_other_tasks_are_never_lost(tiny_folder, tmp_path, kind, task_name, rows, settings):
    """The folder's class of transformers has our states and our head, bit for bit or to rounding."""
    from safetensors.torch import load_file

    model, task, config = make_run(tiny_folder(kind), rows, task=task_name, method="lora", **settings)
    save_tuned(model, task, tmp_path / "model", config)
    loaded: Any = getattr(transformers, task.hub_class).from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids_bt, lengths_b = torch.arange(3, 19)[None], torch.tensor([16])
    head: Any = model.head
    with torch.no_grad():
        x_btd = model.backbone.hidden(ids_bt, lengths_b)
        body = loaded if task.hub_class == "AutoModel" else loaded.base_model
        torch.testing.assert_close(body(ids_bt).last_hidden_state, x_btd, atol=1e-4, rtol=1e-4)
        if task.hub_class == "AutoModel":
            saved = load_file(tmp_path / "model" / "head.safetensors")
            assert all(torch.equal(saved[name], tensor) for name, tensor in head.state_dict().items())
        elif task_name == "question-answering":
            found = loaded(ids_bt)
            both = torch.stack((found.start_logits, found.end_logits), dim=-1)
            torch.testing.assert_close(both, head(x_btd), atol=1e-4, rtol=1e-4)
        else:
            x = x_btd[:, -1] if task_name == "relation-extraction" else x_btd
            torch.testing.assert_close(loaded(ids_bt).logits, head(x), atol=1e-4, rtol=1e-4)
            assert loaded.config.id2label == dict(enumerate(task.labels))


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_a_merged_adapter_keeps_a_head_that_transformers_has_no_class_for(tiny_folder, tmp_path, kind):
    from chinchilla_lm.tune.deployed import load_deployed
    from chinchilla_lm.tune.merging import merge_adapters

    model, task, config = make_run(
        tiny_folder(kind), RELATED, task="relation-extraction", method="lora", head="markers"
    )
    save_tuned(model, task, tmp_path / "model", config)
    merge_adapters(tiny_folder(kind), [tmp_path / "adapter"], tmp_path / "merged")
    loaded_task, loaded = load_deployed(tmp_path / "merged")
    for one, other in zip(task.predict(model, RELATED), loaded_task.predict(loaded, RELATED), strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
