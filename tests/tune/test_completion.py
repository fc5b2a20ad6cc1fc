"""Generative tasks on decoders: the loss is transformers' own, the text is transformers' greedy text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.completion import CompletionTask
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.generative import choice_of, cut_at_stops
from chinchilla_lm.tune.task import IGNORED, TunedModel, make_task

FORMS = [("qwen3", "own"), ("qwen3", "hub"), ("gpt2", "hub")]
TRANSLATIONS = [
    {"source": "the cat sat on the mat", "target": "你好，世界。"},
    {"source": "the dog ran to the river near Paris", "target": "今天的天气很好，我们去北京的公园。"},
    {"source": "good books", "target": "公园。"},
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "translation": TRANSLATIONS,
    "summarization": [{"document": "the team won the final game on sunday . " * 3, "summary": ["team won", "a win"]}],
    "question-answering": [
        {"question": "Who wrote the play ?", "context": "by Anna Smith", "answers": [{"text": "Anna Smith"}]},
        {"question": "Who sat ?", "context": "the dog ran", "answers": []},
    ],
    "text-generation": [
        {"prompt": "the cat", "completion": " sat on the mat"},
        {"text": "the dog ran to the river"},
        {"prompt": "def f():\n    ", "completion": "return 1\n"},
    ],
}


def make(folder: Path, form: Any, task: Any = "translation", **more: Any) -> tuple[CompletionTask, TunedModel]:
    config = TuneConfig(
        task=task, model=str(folder), backbone=form, train="train.jsonl", out="out", method="full", **more
    )
    backbone = load_backbone(config)
    made = make_task(config, ROWS[task], backbone)
    assert isinstance(made, CompletionTask)
    return made, TunedModel(backbone, None).eval()


def loss_of(task: CompletionTask, model: TunedModel, batch: Any) -> tuple[torch.Tensor, int]:
    return task.objective(model, tuple(map(torch.from_numpy, batch)))


@pytest.mark.parametrize("task_name", list(ROWS))
@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_the_loss_is_that_of_transformers_on_the_same_labels(
    kind: str, form: str, task_name: str, tiny_folder: Callable[[str], Path]
):
    from transformers import AutoModelForCausalLM

    task, model = make(tiny_folder(kind), form, task_name)
    items = task.encode(ROWS[task_name], is_training=True)
    loss_sum, count = loss_of(task, model, task.collate(items))
    theirs = AutoModelForCausalLM.from_pretrained(tiny_folder(kind)).eval()
    expected, labels_in_all = 0.0, 0
    for item in items:
        last = item.targets["targets"][-1]
        ids = torch.tensor([[*item.ids, last]])
        labels = torch.tensor([[IGNORED, *item.targets["targets"]]])
        mean = theirs(input_ids=ids, labels=labels).loss.item()
        labels_in_row = int((labels != IGNORED).sum())
        expected, labels_in_all = expected + mean * labels_in_row, labels_in_all + labels_in_row
    assert count == labels_in_all
    assert loss_sum.item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize(("kind", "form"), [("qwen3", "own"), ("gpt2", "hub")])
def test_packing_and_micro_batches_give_the_same_loss_and_count(
    kind: str, form: str, tiny_folder: Callable[[str], Path]
):
    task, model = make(tiny_folder(kind), form)
    items = task.encode(TRANSLATIONS, is_training=True)
    plain = loss_of(task, model, task.collate(items))
    parts = [loss_of(task, model, [array[row : row + 1] for array in task.collate(items)]) for row in range(3)]
    packed_task, _ = make(tiny_folder(kind), form, is_packed=True, max_tokens=120)
    batch = packed_task.collate(items)
    packed = loss_of(packed_task, model, batch)
    assert len(batch[0]) == 1 or len(batch[0]) < len(items)
    assert plain[1] == packed[1] == sum(count for _, count in parts)
    assert packed[0].item() == pytest.approx(plain[0].item(), rel=1e-5)
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(plain[0].item(), rel=1e-5)


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_what_it_writes_is_the_greedy_text_of_transformers(kind: str, form: str, tiny_folder: Callable[[str], Path]):
    from transformers import AutoModelForCausalLM

    task, model = make(tiny_folder(kind), form, max_new_tokens=12)
    assert task.texts.stops == ("\n",)
    predictions = task.predict(model, TRANSLATIONS)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_folder(kind)).eval()
    tokenizer = model.backbone.tokenizer
    for row, prediction in zip(TRANSLATIONS, predictions, strict=True):
        ids = tokenizer(task.texts.prompt(row), return_tensors="pt")
        out = theirs.generate(**ids, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert prediction["text"] == cut_at_stops(str(text), task.texts.stops).strip()


def test_perplexity_is_of_all_rows_where_only_some_are_written(tiny_folder: Callable[[str], Path]):
    task, model = make(tiny_folder("qwen3"), "own", max_new_tokens=4)
    seen: list[tuple[int, int]] = []
    some = task.predict(model, TRANSLATIONS, lambda done, total: seen.append((done, total)), most_written=2)
    assert [row["text"] is None for row in some] == [False, False, True]
    assert seen[-1] == (5, 5)
    measures = task.measure(some, TRANSLATIONS)
    loss = sum(row["loss"] for row in some) / sum(row["tokens"] for row in some)
    assert measures.primary == "chrf" == task.primary
    assert measures.values["loss"] == pytest.approx(loss)
    assert measures.values["perplexity"] == pytest.approx(math.exp(loss))
    whole = task.measure(task.zero_shot(model.backbone, TRANSLATIONS) or [], TRANSLATIONS)
    assert {"bleu", "chrf", "loss", "perplexity", "bits_per_byte", "distinct_2"} <= set(whole.values)
    assert whole.values["loss"] == pytest.approx(loss)


@pytest.mark.parametrize("task_name", ["summarization", "question-answering", "text-generation"])
def test_each_task_is_measured_by_its_own_measures(task_name: Any, tiny_folder: Callable[[str], Path]):
    task, model = make(tiny_folder("qwen3"), "own", task_name, max_new_tokens=3)
    measures = task.measure(task.predict(model, ROWS[task_name]), ROWS[task_name])
    assert measures.primary == task.primary
    wanted = {"summarization": "rouge_2", "question-answering": "exact_match", "text-generation": "distinct_2"}
    assert wanted[task_name] in measures.values


def test_perfect_answers_get_perfect_marks(tiny_folder: Callable[[str], Path]):
    for name, value in (("translation", 100.0), ("summarization", 1.0), ("question-answering", 1.0)):
        task, _ = make(tiny_folder("qwen3"), "own", name)
        said = [task.texts.read(" " + task.texts.answers(row)[-1] + "\n", row) for row in ROWS[name]]
        predictions = [{"text": text, "loss": 1.0, "tokens": 1, "bytes": 1} for text in said]
        assert task.measure(predictions, ROWS[name]).value == pytest.approx(value)


def test_rows_whose_completion_would_be_masked_are_refused_with_a_count(tiny_folder: Callable[[str], Path]):
    template = "the cat sat on the mat and the dog ran to the river near Paris {source}:{answer}"
    task, _ = make(tiny_folder("qwen3"), "own", max_tokens=8, template=template)
    with pytest.raises(DataError, match="all 3 training rows have no target left"):
        task.encode(TRANSLATIONS, is_training=True)
    short = {"source": "cats", "target": "你"}
    task, _ = make(tiny_folder("qwen3"), "own", max_tokens=10, template="{source} in words {long}:{answer}")
    rows = [short | {"long": "a"}, short | {"long": "the dog ran to the river near Paris by the mat again"}]
    assert [item.row for item in task.encode(rows, is_training=True)] == [0]
    assert task.describe()["rows_refused"] == 1


def test_a_long_document_is_cut_and_its_summary_is_not(tiny_folder: Callable[[str], Path]):
    task, _ = make(tiny_folder("qwen3"), "own", "summarization", max_tokens=60)
    row = {"document": "the team won the final game on sunday . " * 20, "summary": "the team won"}
    (item,) = task.encode([row], is_training=True)
    named = item.targets["targets"][item.targets["targets"] != IGNORED]
    assert task.encoder.tokenizer.decode(named) == " the team won<|endoftext|>"
    assert task.describe()["prompts_cut"] == 1
    assert len(item.ids) < 60


def test_controls_and_templates_of_ones_own_reach_the_prompt(tiny_folder: Callable[[str], Path]):
    ROWS["text-generation"].append({"prompt": "the", "completion": " cat", "controls": {"mood": "warm"}})
    try:
        task, _ = make(tiny_folder("qwen3"), "own", "text-generation")
        assert task.texts.prompt(ROWS["text-generation"][-1]) == "<mood: warm>\nthe"
    finally:
        ROWS["text-generation"].pop()
    task, _ = make(tiny_folder("qwen3"), "own", template="Say {source}:")
    assert task.texts.prompt(TRANSLATIONS[2]) == "Say good books:"
    assert task.texts.completion(TRANSLATIONS[2]) == " 公园。"
    with pytest.raises(DataError, match=r"names \{sauce\}"):
        task.texts.template.__class__(text="{sauce}{answer}", constants={}).prompt(TRANSLATIONS[0])
    with pytest.raises(ConfigError, match="at its end"):
        make(tiny_folder("qwen3"), "own", template="{answer} {source}")


def test_languages_are_named_in_the_prompt_and_kept_for_the_measure(tiny_folder: Callable[[str], Path]):
    task, _ = make(tiny_folder("qwen3"), "own", columns={"source": "en", "target": "zh"})
    assert task.texts.prompt(TRANSLATIONS[2]).startswith("Translate English to Chinese.\nEnglish: good books")
    assert task.texts.answer_language == "zh"
    task, _ = make(tiny_folder("qwen3"), "own", language="zh")
    assert task.texts.prompt(TRANSLATIONS[2]).endswith("中文：")


def test_an_encoder_is_told_that_it_does_not_write(tiny_folder: Callable[[str], Path]):
    config = TuneConfig(task="translation", model=str(tiny_folder("bert")), train="a", out="b", method="full")
    with pytest.raises(ConfigError, match="needs a model that writes"):
        make_task(config, TRANSLATIONS, load_backbone(config))


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_beams_find_transformers_own_text(kind: str, form: str, tiny_folder: Callable[[str], Path]):
    from transformers import AutoModelForCausalLM

    task, model = make(tiny_folder(kind), form, max_new_tokens=8, beams=3)
    predictions = task.predict(model, TRANSLATIONS)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_folder(kind)).eval()
    tokenizer = model.backbone.tokenizer
    for row, prediction in zip(TRANSLATIONS, predictions, strict=True):
        ids = tokenizer(task.texts.prompt(row), return_tensors="pt")
        ends = list(task.writing.stop_ids)
        out = theirs.generate(**ids, max_new_tokens=8, do_sample=False, num_beams=3, eos_token_id=ends)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert prediction["text"] == cut_at_stops(str(text), task.texts.stops).strip()


@pytest.mark.parametrize(("kind", "form"), [("qwen3", "own"), ("gpt2", "hub")])
def test_drawn_answers_depend_on_seed_and_prompt_alone(kind: str, form: str, tiny_folder: Callable[[str], Path]):
    task, model = make(tiny_folder(kind), form, max_new_tokens=12, temperature=1.5)
    torch.manual_seed(1)
    first = [row["text"] for row in task.predict(model, TRANSLATIONS)]
    state = torch.get_rng_state()
    again = [row["text"] for row in task.predict(model, TRANSLATIONS[::-1])][::-1]
    assert torch.equal(state, torch.get_rng_state())
    assert first == again
    other, _ = make(tiny_folder(kind), form, max_new_tokens=12, temperature=1.5, seed=7)
    assert first != [row["text"] for row in other.predict(model, TRANSLATIONS)]


def test_a_saved_hub_model_stops_where_the_tokenizer_ends(tiny_folder: Callable[[str], Path]):
    config = TuneConfig(task="translation", model=str(tiny_folder("gpt2")), train="a", out="b", method="full")
    backbone: Any = load_backbone(config)
    backbone.module.generation_config.eos_token_id = 5
    make_task(config, TRANSLATIONS, backbone)
    assert backbone.module.generation_config.eos_token_id == [5, backbone.tokenizer.eos_token_id]


def test_the_choice_of_weights_goes_by_the_measure_in_steps_and_within_one_by_the_loss():
    def of(chrf: float, loss: float) -> float:
        return choice_of(Measures(values={"chrf": chrf, "loss": loss}, primary="chrf")).value

    assert of(0.15, 1.7) > of(0.29, 3.5)  # both are nothing: what has learnt is better
    assert of(20.0, 9.0) > of(17.0, 0.1)  # three points are something
    by_loss = Measures(values={"loss": 2.0}, primary="loss", higher_is_better=False)
    assert choice_of(by_loss) is by_loss
