"""Label words, heads, prompts in tokenizers, padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, pipeline

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.classification import Classification, language_of, make_classification, mean_states
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.label_sets import labels_alike
from chinchilla_lm.tune.prompted_tokenizer import add_prompt, fill, word_ids
from chinchilla_lm.tune.saving import save_tuned
from chinchilla_lm.tune.task import TunedModel

Folder = Callable[[str], Path]
PAIRS = (
    {"text": "a warm film", "text_pair": "the film was good", "label": "yes"},
    {"text": "the team won", "text_pair": "shares fell on sunday and the bank warned", "label": "no"},
)


def configure(folder: Path, **changes: Any) -> TuneConfig:
    settings: dict[str, Any] = {"task": "text-classification", "train": "t", "out": "o", "max_tokens": 64, "lr": 1e-3}
    return TuneConfig(model=str(folder), **settings | changes)


def make(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> tuple[Any, Classification, TunedModel]:
    config = configure(folder, **changes)
    backbone = load_backbone(config)
    task = make_classification(config, rows, backbone)
    torch.manual_seed(0)
    return backbone, task, TunedModel(backbone, task.make_head(backbone)).eval()


def test_label_words_begin_at_zero_shot(tiny_folder: Folder, sentiment_rows: list[dict[str, Any]]) -> None:
    """The head's probabilities are the softmax over the label words' own next-token logits behind the same prompt."""
    for head in ("label-words", "fresh"):
        words = {"positive": "film", "negative": "the"}
        backbone, task, model = make(tiny_folder("qwen3"), sentiment_rows, head=head, label_words=words)
        template = task.describe()["template"]
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder("qwen3"))
        prompts = [tokenizer(fill(template, row))["input_ids"] for row in sentiment_rows]
        logits_bv = backbone.next_token_logits(prompts)
        ids = [word_ids(tokenizer, template, words[label]) for label in task.labels]
        assert [len(each) for each in ids] == [1, 1]
        expected_bk = logits_bv[:, [each[0] for each in ids]].softmax(dim=-1)
        for predicted in (task.predict(model, sentiment_rows), task.zero_shot(backbone, sentiment_rows)):
            assert predicted is not None
            np.testing.assert_allclose([each["probabilities"] for each in predicted], expected_bk, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "bert", "bart"])
def test_logits_depend_on_no_padding(tiny_folder: Folder, sentiment_rows: list[dict[str, Any]], kind: str) -> None:
    """Alone, in a batch, padded with any id, and by transformers' pipeline padding on either side."""
    _, task, model = make(tiny_folder(kind), sentiment_rows)
    rows = [sentiment_rows[0], sentiment_rows[-1], {"text": "a"}]
    together = task.predict(model, rows)
    alone = [task.predict(model, [row])[0] for row in rows]
    for filler in (0, 1, 9):
        task._filler = filler
        for one, other in zip(together, [*alone, *task.predict(model, rows)], strict=False):
            np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-5)


# Models with absolute positions count left padding as positions in transformers itself: pad those on the right.
@pytest.mark.parametrize(
    ("kind", "side"), [("qwen3", "left"), ("qwen3", "right"), ("llama", "left"), ("gpt2", "right"), ("bert", "right")]
)
def test_the_saved_folder_answers_to_raw_text(
    tiny_folder: Folder, sentiment_rows: list[dict[str, Any]], tmp_path: Path, kind: str, side: str
) -> None:
    _, task, model = make(tiny_folder(kind), sentiment_rows)
    save_tuned(model, task, tmp_path / "model", configure(tiny_folder(kind), method="full"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", padding_side=side)
    pipe = pipeline("text-classification", model=str(tmp_path / "model"), tokenizer=tokenizer, top_k=None)
    texts = [row["text"] for row in sentiment_rows[:5]]
    for row, said in zip(task.predict(model, sentiment_rows[:5]), pipe(texts, batch_size=5), strict=True):
        scores = {each["label"]: each["score"] for each in said}
        expected = dict(zip(task.labels, row["probabilities"], strict=True))
        assert scores == pytest.approx(expected, abs=1e-4)


def test_micro_batches_sum_to_the_batch(tiny_folder: Folder, sentiment_rows: list[dict[str, Any]]) -> None:
    _, task, model = make(tiny_folder("qwen3"), sentiment_rows, head="fresh")
    batch = task.collate(task.encode(sentiment_rows[:7], is_training=True))
    tensors = tuple(torch.from_numpy(array) for array in batch)
    whole, count = task.objective(model, tensors)
    parts = [task.objective(model, tuple(tensor[i : i + 3] for tensor in tensors)) for i in (0, 3, 6)]
    assert count == sum(part for _, part in parts) == 7
    torch.testing.assert_close(whole, sum(loss for loss, _ in parts))


def test_pairs_and_sets_of_labels(tiny_folder: Folder) -> None:
    _, task, model = make(tiny_folder("qwen3"), list(PAIRS))
    ids = task.encode(PAIRS, is_training=True)[0].ids
    joint = fill(task.describe()["template"], PAIRS[0])
    assert task._plain_tokenizer.decode(ids) == joint
    assert {each["label"] for each in task.predict(model, PAIRS)} <= {"yes", "no"}
    rows = [{"text": "a warm film", "label": ["good", "film"]}, {"text": "shares fell", "label": []}]
    _, task, model = make(tiny_folder("bert"), rows)
    batch = tuple(torch.from_numpy(array) for array in task.collate(task.encode(rows, is_training=True)))
    loss, count = task.objective(model, batch)
    logits_bk = model.head(batch[0], batch[1], token_type_ids=batch[2]).logits
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits_bk, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert float(loss / count) == pytest.approx(float(expected), rel=1e-5)
    assert task.measure(task.predict(model, rows), rows).primary == "micro_f1"


def test_an_encoders_pair_has_its_segments(tiny_folder: Folder) -> None:
    _, task, _ = make(tiny_folder("bert"), list(PAIRS))
    item = task.encode(PAIRS, is_training=True)[1]
    tokens = task.tokenizer.convert_ids_to_tokens(item.ids)
    border = tokens.index("[SEP]") + 1
    assert tokens[0] == "[CLS]"
    if "types" in item.targets:
        assert item.targets["types"].tolist() == [0] * border + [1] * (len(tokens) - border)


def test_a_long_text_is_cut_and_the_prompt_stays(tiny_folder: Folder, sentiment_rows: list[dict[str, Any]]) -> None:
    _, task, _ = make(tiny_folder("llama"), sentiment_rows, max_tokens=48)
    item = task.encode([{"text": "warm " * 200}], is_training=False)[0]
    assert item.length == 48
    text = task._plain_tokenizer.decode(item.ids)
    assert text.startswith("Review: warm")
    assert text.endswith("\nSentiment:")


@pytest.mark.parametrize(
    "template",
    ["Review: {text}\nSentiment:", "{text}\nIs it {text_pair}?", "评论：{text}\n情感：", "A {text_pair} B {text}."],
)
def test_a_prompt_in_the_tokenizer_is_the_prompt_as_text(tiny_folder: Folder, template: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("gpt2"))
    made = add_prompt(tokenizer, template, [{"text": "a film", "text_pair": "the cat"}])
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text, pair in (("a warm film", "the dog"), ("你好，世界。", "on sunday ,")):
        texts = (text, pair) if "text_pair" in template else (text,)
        assert tokenizer.decode(again(*texts)["input_ids"]) == fill(template, {"text": text, "text_pair": pair})


@pytest.mark.parametrize("template", ["no field", "{text} {text}", "{text} {label}"])
def test_a_template_without_its_field_is_refused(tiny_folder: Folder, template: str) -> None:
    with pytest.raises(ConfigError, match="template = .*Review"):
        add_prompt(AutoTokenizer.from_pretrained(tiny_folder("gpt2")), template)


def test_head_and_labels_follow_the_rules(tiny_folder: Folder, sentiment_rows: list[dict[str, Any]]) -> None:
    def head(rows: list[dict[str, Any]], **changes: Any) -> str:
        config = configure(tiny_folder("qwen3"), **changes)
        return make_classification(config, rows, backbone).describe()["head"]

    backbone = load_backbone(configure(tiny_folder("qwen3")))
    assert head(sentiment_rows) == "label-words"
    assert head(sentiment_rows * 50) == "fresh"
    assert head(sentiment_rows, method="head") == "fresh"
    strange = [{**row, "label": {"positive": "龘", "negative": "齉"}.get(row["label"], "靐")} for row in sentiment_rows]
    assert head(strange) == "fresh"  # words that the tokenizer spells in bytes
    words = dict(zip(dict.fromkeys(row["label"] for row in strange), ("good", "bad", "great"), strict=False))
    assert head(strange, label_words=words) == "label-words"
    with pytest.raises(ConfigError, match="span"):
        head(sentiment_rows, head="span")
    with pytest.raises(ConfigError, match="'happy'.*negative, positive"):
        head(sentiment_rows, label_words={"happy": "good"})
    with pytest.raises(DataError, match="1 labels"):
        head(sentiment_rows[:1])
    numbers = [{"text": "a", "label": label} for label in ("10", "9", "-1")]
    assert make_classification(configure(tiny_folder("qwen3")), numbers, backbone).labels == ("-1", "9", "10")


def test_a_label_that_training_never_saw_counts_as_missed(
    tiny_folder: Folder, sentiment_rows: list[dict[str, Any]]
) -> None:
    _, task, model = make(tiny_folder("qwen3"), sentiment_rows)
    rows = [*sentiment_rows[:3], {"text": "a so so film", "label": "neutral"}]
    assert task.measure(task.predict(model, rows), rows).value <= 0.75


def test_labels_of_the_same_tokens_get_a_head_that_can_tell_them_apart(
    tiny_folder: Folder, sentiment_rows: list[dict[str, Any]]
) -> None:
    """Numbers cut into digits, as SmolLM2 cuts them: the mean rows of "12" and "21" are one row."""
    assert labels_alike({"3": [7], "12": [5, 6], "21": [6, 5]}) == ("12", "21")
    folder, rows = tiny_folder("qwen3"), [*sentiment_rows, {"text": "x", "label": "pos"}]  # read as "positive", too
    assert make(folder, sentiment_rows)[1].describe()["head"] == "label-words"
    assert make(folder, rows)[1].describe()["head"] == "fresh"
    with pytest.raises(ConfigError, match="'pos' and 'positive' have words of the same tokens, which no tuning"):
        make(folder, rows, head="label-words")
    named = make(folder, rows, head="label-words", label_words={"pos": "good"})[1]
    assert named.labels == ("negative", "pos", "positive")


def test_language_and_means() -> None:
    assert language_of(["今天的天气很好"]) == "zh"
    assert language_of(["a film by 王家卫, shot in Hong Kong"]) == "en"
    x_btd = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [6.0]]])
    assert mean_states(x_btd, torch.tensor([2, 3])).tolist() == [[2.0], [4.0]]
