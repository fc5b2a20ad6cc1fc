"""Tuned folders behind /v1/classify: a prompt in the tokenizer, entities; against transformers on the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serve.conftest import run_live

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.serve.served_model import load_served_model
from chinchilla_lm.serve.settings import ServerSettings

TEXTS = ["the sea said nothing", "hello, said the cook"]


def save_folder(tiny_folder: Path, folder: Path, kind: str, labels: list[str]) -> Any:
    """A random Qwen3 of a task, and a tokenizer that puts a prompt around a text."""
    import transformers
    from tokenizers import processors

    shape = json.loads((tiny_folder / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = transformers.Qwen3Config(
        **{name: shape[name] for name in (*names, "num_key_value_heads", "head_dim")},
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        pad_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(3)
    model = getattr(transformers, f"Qwen3For{kind}")(config).eval()
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    if kind == "SequenceClassification":
        pieces = [
            {"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}
            for name, ids in (("before", [9, 8]), ("after", [7]))
        ]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=["before:0", "$A:0", "after:0"], pair=["$A:0", "$B:0"], special_tokens=pieces
        )
    tokenizer.save_pretrained(folder)
    return model


def test_the_prompt_in_the_tokenizer_is_read(tiny_folder, tmp_path):
    import transformers

    save_folder(tiny_folder, tmp_path / "m", "SequenceClassification", ["bad", "fine", "good"])
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "m"), device="cpu")
    with run_live(tmp_path / "m", ServerSettings(port=0)) as live:
        answer = live.post("/v1/classify", {"model": "tiny", "input": TEXTS}).json()
    for row, text in zip(answer["data"], TEXTS, strict=True):
        expected = {each["label"]: each["score"] for each in pipe(text, top_k=None)}
        assert row["probs"] == pytest.approx([expected[label] for label in answer["labels"]], abs=1e-4)


def test_entities_are_those_of_the_words_last_tokens(tiny_folder, tmp_path):
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    model = save_folder(tiny_folder, tmp_path / "m", "TokenClassification", labels)
    described = {"schema": "tuned/1", "describe": {"pooling": "last", "joiner": " "}}
    (tmp_path / "m" / "task.json").write_text(json.dumps(described))
    with run_live(tmp_path / "m", ServerSettings(port=0)) as live:
        answer = live.post("/v1/classify", {"model": "tiny", "input": TEXTS}).json()
        assert live.post("/v1/classify", {"model": "tiny", "input": [1, 2]}).status_code == 400
        empty = live.post("/v1/classify", {"model": "tiny", "input": ["", TEXTS[0]]}).json()["data"]
        assert empty == [{"index": 0, "entities": []}, {"index": 1, "entities": answer["data"][0]["entities"]}]
        encodings = [live.served.tokenizer.encode(text) for text in TEXTS]
    assert any(row["entities"] for row in answer["data"])
    for row, text, encoding in zip(answer["data"], TEXTS, encodings, strict=True):
        with torch.no_grad():
            chances_tc = model(torch.tensor([encoding.ids])).logits[0].softmax(dim=-1)
        for entity in row["entities"]:
            assert entity["word"] == text[entity["start"] : entity["end"]]
            first = text[entity["start"] :].split()[0].rstrip(",")
            end = entity["start"] + len(first)
            last = max(t for t, (low, _) in enumerate(encoding.offsets) if low < end)
            tag = labels[int(chances_tc[last].argmax())]
            assert tag[2:] == entity["entity_group"]
            if len(first) == len(entity["word"]):
                assert entity["score"] == pytest.approx(float(chances_tc[last].max()), abs=1e-4)


def test_a_head_without_a_route_is_refused_in_one_line(tiny_folder, tmp_path):
    save_folder(tiny_folder, tmp_path / "m", "QuestionAnswering", ["a", "b"])
    with pytest.raises(ModelError, match="QuestionAnswering is not served"):
        load_served_model(tmp_path / "m")


PAIRS = [["the sea", "it said nothing"], ["hello", "said the cook"]]
CONTEXT = "hello, said the cook. the sea said nothing, and the cook was silent for a while."


def test_a_folder_of_pairs_takes_pairs_alone(tiny_folder, tmp_path):
    import transformers

    model = save_folder(tiny_folder, tmp_path / "m", "SequenceClassification", ["bad", "fine", "good"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    described = {"schema": "tuned/1", "describe": {"template": "{text}{text_pair}"}}
    (tmp_path / "m" / "task.json").write_text(json.dumps(described))
    objects = [{"text": first, "text_pair": second} for first, second in PAIRS]
    with run_live(tmp_path / "m", ServerSettings(port=0)) as live:
        answers = [live.post("/v1/classify", {"model": "tiny", "input": given}).json() for given in (objects, PAIRS)]
        single = live.post("/v1/classify", {"model": "tiny", "input": PAIRS[0]}).json()
        refused = [
            live.post("/v1/classify", {"model": "tiny", "input": given})
            for given in ("the sea", ["the sea"], [1, 2], {"question": "a", "context": "b"}, {"text": "a"})
        ]
    assert answers[0]["data"] == answers[1]["data"]
    assert single["data"] == answers[0]["data"][:1]
    for row, pair in zip(answers[0]["data"], PAIRS, strict=True):
        with torch.no_grad():
            logits_k = model(**tokenizer(*pair, return_tensors="pt")).logits[0]
        assert row["probs"] == pytest.approx(logits_k.softmax(dim=-1).tolist(), abs=1e-4)
    assert [each.status_code for each in refused] == [400] * 5
    assert "must be a pair" in refused[0].json()["error"]["message"]


def test_a_pair_of_nothing_is_refused_where_no_prompt_is_around_it(tiny_folder, tmp_path):
    from transformers import AutoTokenizer

    save_folder(tiny_folder, tmp_path / "m", "SequenceClassification", ["bad", "good"])
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "task.json").write_text(json.dumps({"describe": {"template": "{text}{text_pair}"}}))
    with run_live(tmp_path / "m", ServerSettings(port=0)) as live:
        for nothing in (["", ""], {"text": "", "text_pair": ""}, [["a", "b"], ["", ""]]):
            answer = live.post("/v1/classify", {"model": "tiny", "input": nothing})
            assert answer.status_code == 400
            assert "two empty texts" in answer.json()["error"]["message"]
        assert live.post("/v1/classify", {"model": "tiny", "input": ["", "the sea"]}).status_code == 200


def test_single_texts_folders_refuse_pairs(tiny_folder, tmp_path):
    save_folder(tiny_folder, tmp_path / "m", "SequenceClassification", ["bad", "good"])
    with run_live(tmp_path / "m", ServerSettings(port=0)) as live:
        for given in ({"text": "a", "text_pair": "b"}, PAIRS, [{"question": "a", "context": "b"}]):
            refused = live.post("/v1/classify", {"model": "tiny", "input": given})
            assert refused.status_code == 400
            assert "single texts" in refused.json()["error"]["message"]


@pytest.mark.parametrize(("has_unanswerable", "max_tokens"), [(False, 60), (True, 60), (False, 40)])
def test_answers_are_those_of_the_tuned_task(tiny_folder, tmp_path, has_unanswerable, max_tokens):
    from chinchilla_lm.tune.deployed import load_deployed

    save_folder(tiny_folder, tmp_path / "m", "QuestionAnswering", [])
    describe = {"head": "span", "template": "Q: {question}\n{context}\nA:", "language": "en", "max_tokens": max_tokens}
    describe |= {"stride": min(128, max_tokens // 3), "longest_answer_tokens": 5, "has_unanswerable": has_unanswerable}
    describe["token_cost"] = 0.25
    table = {"schema": "tuned/1", "task": "question-answering", "mask": "causal", "labels": [], "needs_adapter": False}
    (tmp_path / "m" / "task.json").write_text(json.dumps({**table, "describe": {**describe, "threshold": 0.0}}))
    questions = [{"question": "who?", "context": CONTEXT}, {"question": "what?", "context": "海 said 你好 to me"}]
    task, model = load_deployed(tmp_path / "m")
    expected = task.predict(model, [{**row, "answers": []} for row in questions])
    with run_live(tmp_path / "m", ServerSettings(port=0)) as live:
        answer = live.post("/v1/classify", {"model": "tiny", "input": questions}).json()
        assert live.post("/v1/classify", {"model": "tiny", "input": "the sea"}).status_code == 400
        long = {"question": "who? " * 80, "context": "a"}
        assert "leaves no room" in live.post("/v1/classify", {"model": "tiny", "input": long}).text
    for row, said, question in zip(answer["data"], expected, questions, strict=True):
        assert (row["answer"], row["start"], row["end"]) == (said["text"], said["start"], said["end"])
        assert row["margin"] == pytest.approx(said["margin"], abs=1e-2)
        if row["start"] is not None:
            assert question["context"][row["start"] : row["end"]] == row["answer"]
            assert row["score"] == pytest.approx(said["score"], abs=1e-2)


RELATED = [
    {"text": "the sea said nothing to the cook", "head": [4, 7], "tail": [28, 32], "label": "Tells(e1,e2)"},
    {"text": "hello, said the cook of 海", "head": [16, 20], "tail": [24, 25], "label": "Of(e1,e2)"},
    {"text": "the cook " * 30 + "was silent", "head": [4, 8], "tail": [40, 44], "label": "Other"},
]


def save_relations(tiny_folder: Path, folder: Path, **more: Any) -> tuple[Any, Any]:
    """A tuned relation folder with random heads, and the task that made it."""
    from chinchilla_lm.tune.backbone import load_backbone
    from chinchilla_lm.tune.config import TuneConfig
    from chinchilla_lm.tune.saving import save_tuned
    from chinchilla_lm.tune.task import TunedModel, make_task

    settings = {"method": "full", "max_tokens": 48, **more}
    config = TuneConfig(task="relation-extraction", model=str(tiny_folder), train="a", out="b", **settings)
    backbone = load_backbone(config)
    task = make_task(config, RELATED, backbone)
    torch.manual_seed(5)
    head: Any = task.make_head(backbone)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3)
    model = TunedModel(backbone, head).eval()
    save_tuned(model, task, folder, config)
    return task, model


@pytest.mark.parametrize("types", [{}, {"head_type": "PERSON", "tail_type": "PLACE"}])
@pytest.mark.parametrize("template", [None, "Between {head} and {tail}: {text} ="])
def test_relations_are_those_of_the_tuned_task(tiny_folder, tmp_path, types, template):
    more = {} if template is None else {"template": template}
    task, model = save_relations(tiny_folder, tmp_path / "m", **more)
    rows = [{name: row[name] for name in ("text", "head", "tail")} | types for row in RELATED]
    expected = task.predict(model, rows)
    with run_live(tmp_path / "m", ServerSettings(port=0)) as live:
        answer = live.post("/v1/classify", {"model": "tiny", "input": rows}).json()
        single = live.post("/v1/classify", {"model": "tiny", "input": rows[1]}).json()
        schema = live.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]["requestBody"]
    assert answer["labels"] == list(task.labels)
    assert "tail_type" in json.dumps(schema)
    for row, said in zip(answer["data"], expected, strict=True):
        assert row["label"] == said["label"]
        assert row["probs"] == pytest.approx(said["probabilities"], abs=1e-4)
    assert max(expected[0]["probabilities"]) - min(expected[0]["probabilities"]) > 0.01  # a head that says something
    assert single["data"][0]["probs"] == pytest.approx(answer["data"][1]["probs"], abs=1e-6)


def test_entities_that_make_no_sense_are_refused(tiny_folder, tmp_path):
    save_relations(tiny_folder, tmp_path / "m")
    text = "the sea said nothing"
    with run_live(tmp_path / "m", ServerSettings(port=0)) as live:
        for given, said in (
            (text, "must be"),
            ({"text": text, "text_pair": text}, "must be"),
            ({"text": text, "head": [0, 3], "tail": [4, 90]}, "characters of a text of 20"),
            ({"text": text, "head": [0, 7], "tail": [4, 12]}, "cross"),
            ({"text": text, "head": [3, 3], "tail": [4, 7]}, "characters of a text"),
            ({"text": text, "head": [0, 3, 4], "tail": [4, 7]}, "input"),
            ({"text": text, "head": [0, 3]}, "input"),
            ({"text": "a" * 100_000, "head": [0, 1], "tail": [2, 3]}, "longer than the model reads"),
        ):
            refused = live.post("/v1/classify", {"model": "tiny", "input": given})
            assert refused.status_code == 400, given
            assert said in refused.json()["error"]["message"], refused.text
        assert live.post("/v1/classify", {"model": "tiny", "input": RELATED[0] | {"label": "a"}}).status_code == 400


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"labels": ["a"]}, "names of two relations"),
        ({"labels": ["a", "b"]}, "the head has"),
        ({"describe": {"head": "markers", "template": "no field", "max_tokens": 48}}, "must hold"),
        ({"describe": {"head": "markers", "template": "{text}", "max_tokens": 0}}, "whole number"),
        ({"describe": {}}, "is not served"),
        ({"mask": "bidirectional"}, "reads causally"),
    ],
)
def test_a_wrong_relation_folder_is_refused_in_one_line(tiny_folder, tmp_path, wrong, match):
    save_relations(tiny_folder, tmp_path / "m")
    path = tmp_path / "m" / "task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(ModelError, match=match) as caught:
        load_served_model(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"max_tokens": "60"}, {"stride": 0}, {"threshold": "x"}, {"token_cost": "x"}, {"template": "{context}"}],
)
def test_a_wrong_task_file_is_refused_in_one_line(tiny_folder, tmp_path, wrong):
    save_folder(tiny_folder, tmp_path / "m", "QuestionAnswering", [])
    describe = {"template": "{question}{context}:", "max_tokens": 60, "stride": 20, "longest_answer_tokens": 5}
    (tmp_path / "m" / "task.json").write_text(json.dumps({"describe": {**describe, **wrong}}))
    with pytest.raises(ModelError) as refused:
        load_served_model(tmp_path / "m")
    assert "\n" not in str(refused.value)
