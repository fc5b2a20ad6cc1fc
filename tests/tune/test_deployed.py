"""What was saved answers as what was tuned: by transformers' own classes and pipelines, and by our loader."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, pipeline

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.files import read_json, write_json
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.deployed import load_deployed
from chinchilla_lm.tune.saving import save_tuned
from chinchilla_lm.tune.spans import span_logits

from .conftest import RELATED, TAGGED, batch_of, build

KINDS = ("qwen3", "gpt2", "bert")
ASKED = [
    {
        "question": "Who wrote it ?",
        "context": "It was written by Anna Smith near London .",
        "answers": [{"text": "Anna Smith"}],
    },
    {"question": "哪里？", "context": "今天的天气很好，我们去北京的公园。", "answers": [{"text": "公园"}]},
]


def saved(folder, rows, target, *, updates=0, **changes):
    """(task, model) with a random head, or one that has learned its rows; saved under `target`."""
    config = TuneConfig(model=str(folder), train="t", out=str(target.parent), method="full", max_tokens=128, **changes)
    task, model = build(config, rows, head_spread=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = batch_of(task, task.encode(rows, is_training=True))
    for _ in range(updates):
        task.objective(model, batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    save_tuned(model, task, target, config)
    return task, model


def spans_of(tags, tokens):
    """Entities of tagged words as (type, first character, end) in the joined text."""
    found, start = [], 0
    for tag, token in zip(tags, tokens, strict=True):
        end = start + len(token)
        if tag.startswith("B-"):
            found.append((tag[2:], start, end))
        elif tag.startswith("I-"):
            found[-1] = (found[-1][0], found[-1][1], end)
        start = end + 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_gives_the_entities_of_the_words(tiny_folder, tmp_path, kind):
    """pooling "mean" is what aggregation_strategy="average" computes; byte-level offsets may hold the space before."""
    task, model = saved(
        tiny_folder(kind), TAGGED, tmp_path / "model", updates=60, task="token-classification", pooling="mean"
    )
    ours = task.predict(model, TAGGED)
    assert [each["tags"] for each in ours] == [row["tags"] for row in TAGGED]
    arguments = {name: value for name, value in task.describe()["pipeline"].items() if name != "is_exact"}
    tagger = pipeline("token-classification", model=str(tmp_path / "model"), device="cpu", **arguments)
    for row, each in zip(TAGGED, ours, strict=True):
        text = " ".join(row["tokens"])
        theirs = []
        for entity in tagger(text):
            piece = text[entity["start"] : entity["end"]]
            theirs.append((entity["entity_group"], entity["end"] - len(piece.lstrip()), entity["end"]))
        assert theirs == spans_of(each["tags"], row["tokens"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipelines_word_scores_are_ours(tiny_folder, tmp_path, kind):
    """Also where nothing was learned: the probability of each word's likeliest tag."""
    from chinchilla_lm.tune.tagging import _score

    row = {"tokens": ["unheardofword", "ran"], "tags": ["B-PER", "O"]}
    task, model = saved(tiny_folder(kind), [row], tmp_path / "model", task="token-classification", pooling="mean")
    ((_, logps_uk),) = _score(task, model, task.encode([row], is_training=False))
    tagger = pipeline("token-classification", model=str(tmp_path / "model"), device="cpu", ignore_labels=[])
    text = " ".join(row["tokens"])
    raw = tagger.forward(next(tagger.preprocess(text, is_split_into_words=False)))
    entities = tagger.gather_pre_entities(
        text,
        raw["input_ids"][0],
        raw["logits"][0].softmax(-1).numpy(),
        raw["offset_mapping"][0],
        raw["special_tokens_mask"][0].numpy(),
        _strategy("average"),
    )
    words = tagger.aggregate_words(entities, _strategy("average"))
    assert [task.labels.index(word["entity"]) for word in words] == logps_uk.argmax(axis=1).tolist()
    assert [float(word["score"]) for word in words] == pytest.approx(list(_exp(logps_uk.max(axis=1))), abs=1e-4)


def _strategy(name):
    from transformers.pipelines.token_classification import AggregationStrategy

    return AggregationStrategy(name)


def _exp(values):
    return torch.tensor(values).exp().tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_relations_of_the_last_token_form_run_in_the_plain_pipeline(tiny_folder, tmp_path, kind):
    head = "fresh" if kind == "bert" else "label-words"
    task, model = saved(tiny_folder(kind), RELATED, tmp_path / "model", task="relation-extraction", head=head)
    classifier = pipeline("text-classification", model=str(tmp_path / "model"), device="cpu", top_k=None)
    texts = [task.prompted_text(row) for row in RELATED]
    for batch_size in (1, 2):
        for answer, ours in zip(classifier(texts, batch_size=batch_size), task.predict(model, RELATED), strict=True):
            p_of = {each["label"]: each["score"] for each in answer}
            assert [p_of[label] for label in task.labels] == pytest.approx(ours["probabilities"], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_spans_load_as_the_models_own_class_with_equal_logits(tiny_folder, tmp_path, kind):
    task, model = saved(tiny_folder(kind), ASKED, tmp_path / "model", task="question-answering", head="span")
    plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model").eval()
    for item in task.encode(ASKED, is_training=False):
        ids_bt, lengths_b, spans_b3 = (torch.from_numpy(array) for array in task.collate([item]))
        more = {}
        if kind == "bert":
            more = {"token_type_ids": (torch.arange(item.length) >= item.targets["span"][0]).long()[None]}
        with torch.no_grad():
            theirs = plain(input_ids=ids_bt, **more)
            ours_t2 = span_logits(model, ids_bt, lengths_b, spans_b3)[0]
        inside = slice(*item.targets["span"][:2])
        torch.testing.assert_close(ours_t2[inside, 0], theirs.start_logits[0][inside], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours_t2[inside, 1], theirs.end_logits[0][inside], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (TAGGED, {"task": "token-classification"}),
        (RELATED, {"task": "relation-extraction", "head": "markers"}),
        (RELATED, {"task": "relation-extraction", "head": "fresh"}),
        (ASKED, {"task": "question-answering", "head": "span"}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_our_loader_answers_as_what_was_tuned(tiny_folder, tmp_path, kind, rows, settings):
    task, model = saved(tiny_folder(kind), rows, tmp_path / "model", **settings)
    loaded_task, loaded = load_deployed(tmp_path / "model")
    ours, theirs = task.predict(model, rows), loaded_task.predict(loaded, rows)
    for one, other in zip(ours, theirs, strict=True):
        assert one.get("tags") == other.get("tags")
        assert one.get("text") == other.get("text")
        assert one.get("probabilities", []) == pytest.approx(other.get("probabilities", []), abs=1e-5)
    described = task.describe()
    assert loaded_task.describe() == described


def test_a_bidirectional_model_is_loaded_bidirectional(tiny_folder, tmp_path):
    settings = {"task": "token-classification", "mask": "bidirectional"}
    task, model = saved(tiny_folder("qwen3"), TAGGED, tmp_path / "model", **settings)
    tagger = pipeline("token-classification", model=str(tmp_path / "model"), device="cpu", ignore_labels=[])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids_bt = tokenizer("Anna Smith ran to Paris .", return_tensors="pt")["input_ids"]
    lengths_b = torch.tensor([ids_bt.shape[1]])
    with torch.no_grad():
        ours = model.head(model.backbone.hidden(ids_bt, lengths_b))
        theirs = tagger.model(input_ids=ids_bt).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    loaded_task, loaded = load_deployed(tmp_path / "model")
    assert loaded_task.predict(loaded, TAGGED) == task.predict(model, TAGGED)


def test_folders_that_cannot_answer_are_refused(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match="has no task.json"):
        load_deployed(tiny_folder("qwen3"))
    saved(tiny_folder("qwen3"), RELATED, tmp_path / "model", task="relation-extraction", head="markers")
    description = read_json(tmp_path / "model" / "task.json")
    for changes, message in (
        ({"task": "translation"}, "is not of token-classification"),
        ({"mask": "top-k"}, "no folder carries"),
        ({"labels": ["one", "two", "three"]}, "the head has"),
        ({"describe": {}}, "lacks 'head'"),
    ):
        write_json(tmp_path / "model" / "task.json", description | changes)
        with pytest.raises(ModelError, match=message):
            load_deployed(tmp_path / "model")
