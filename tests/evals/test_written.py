"""Answers that the model writes: against greedy decoding by whole passes, held to labels, and voted on."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from chinchilla_lm.core.errors import ConfigError, DataError, ModelError
from chinchilla_lm.evals.loading import load_for_evaluation
from chinchilla_lm.evals.prompted import PromptRows, PromptSettings
from chinchilla_lm.evals.scorer import Scorer
from chinchilla_lm.evals.written import Writing, answer_by_writing, measure_written
from chinchilla_lm.prompt.demonstrations import DemoSettings
from chinchilla_lm.prompt.extraction import extract_answer
from chinchilla_lm.prompt.library_files import load_template

QUESTIONS = [
    {"question": "who sang", "answers": [{"text": "the sailor"}]},
    {"question": "who said no", "answers": [{"text": "the cook"}, {"text": "cook"}]},
    {"question": "what came near", "answers": [{"text": "a whale"}]},
]
REVIEWS = [{"text": "the sea was calm", "label": "positive"}, {"text": "the cook said no", "label": "negative"}] * 3
CLOSED = load_template("en/question-answering/closed-question")
REVIEW = load_template("en/text-classification/sentiment-review")


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_for_evaluation(tiny_model)


@pytest.fixture(scope="module")
def scorer(loaded):
    return loaded.scorer("float32")


@torch.inference_mode()
def greedy(loaded, prompt: str, most: int, stops: tuple[str, ...]) -> str:
    """The likeliest token again and again, each by a whole pass; cut at the first stop string."""
    ids, written = loaded.tokenizer.encode(prompt).ids, []
    for _ in range(most):
        token = int(loaded.model(torch.tensor([ids + written]))[0, -1].argmax())
        if token in loaded.stop_ids:
            break
        written.append(token)
        text = loaded.tokenizer.decode(written)
        if any(stop in text.lstrip("\n") for stop in stops):
            break
    text = loaded.tokenizer.decode(written)
    for stop in stops:
        text = text.split(stop)[0]
    return text


def test_answers_are_greedy_text_extracted(loaded, scorer):
    result = answer_by_writing(scorer, CLOSED, PromptRows(tests=QUESTIONS))
    (draw,) = result.draws
    for row, texts, answer in zip(QUESTIONS, draw.texts, draw.answers, strict=True):
        prompt = CLOSED.render(row)
        assert texts == (greedy(loaded, prompt.prefix, CLOSED.max_tokens, CLOSED.stops),)
        assert answer == (extract_answer(CLOSED.extract, texts[0], ()) or "")
    assert (draw.shares, result.cut_rows, result.spread["f1"]) == ((1.0,) * 3, 0, 0.0)


def test_the_models_own_end_of_text_ends_an_answer(loaded):
    free = dataclasses.replace(CLOSED, stops=(), max_tokens=8)
    row = QUESTIONS[0]
    prompt = loaded.tokenizer.encode(free.render(row).prefix).ids
    written: list[int] = []
    for _ in range(8):
        written.append(int(loaded.model(torch.tensor([prompt + written]))[0, -1].argmax()))
    last = next(token for token in written[1:] if token != written[0])
    scorer = Scorer(loaded.model, loaded.tokenizer, start_id=0, stop_ids=(last,), weights="float32")
    (texts,) = answer_by_writing(scorer, free, PromptRows(tests=[row])).draws[0].texts
    assert texts == (loaded.tokenizer.decode(written[: written.index(last)]),)
    assert loaded.scorer("float32").stop_ids == loaded.stop_ids


def test_a_long_answer_leaves_the_prompt_its_half_of_the_context(loaded, scorer):
    capacity = scorer.engine.capacity
    long = dataclasses.replace(CLOSED, stops=(), max_tokens=2 * capacity)
    result = answer_by_writing(scorer, long, PromptRows(tests=QUESTIONS[:1]))
    assert result.cut_rows == 0
    prompt = long.render(QUESTIONS[0]).prefix
    assert result.draws[0].texts[0][0].startswith(greedy(loaded, prompt, 5, ()))
    wordy = {**QUESTIONS[0], "question": "who sang " * capacity}
    assert answer_by_writing(scorer, long, PromptRows(tests=[wordy])).cut_rows == 1


def test_held_to_the_labels_the_model_writes_one_of_them(scorer):
    result = answer_by_writing(scorer, REVIEW, PromptRows(tests=REVIEWS), writing=Writing(is_constrained=True))
    assert set(result.draws[0].answers) <= {"negative", "positive"}
    right = [answer == row["label"] for answer, row in zip(result.draws[0].answers, REVIEWS, strict=True)]
    assert result.mean["accuracy"] == pytest.approx(sum(right) / len(right))


def test_samples_are_voted_on_and_follow_from_the_seed(scorer):
    rows = PromptRows(tests=REVIEWS[:2])

    def ask(seed: int):
        writing = Writing(samples=5, temperature=1.5, is_constrained=True, seed=seed)
        return answer_by_writing(scorer, REVIEW, rows, writing=writing).draws[0]

    one = ask(1)
    assert one.texts == ask(1).texts
    for texts, answer, share in zip(one.texts, one.answers, one.shares, strict=True):
        votes = [text.strip() for text in texts]
        assert len(votes) == 5
        assert share == votes.count(answer) / 5 == max(votes.count(other) for other in votes) / 5


def test_draws_of_demonstrations_give_a_mean_and_a_spread(scorer):
    pool = [{"question": f"what is {n} and {n + 7}", "answers": [{"text": f"the {n}"}]} for n in range(8)]
    settings = PromptSettings(demonstrations=DemoSettings(shots=2, draws=3, method="random"))
    result = answer_by_writing(scorer, CLOSED, PromptRows(tests=QUESTIONS, pool=pool), settings)
    assert (len(result.draws), result.shots) == (3, 2)
    assert len({draw.demonstrations for draw in result.draws}) > 1


def test_measures_are_those_of_the_task():
    exact = measure_written(CLOSED, QUESTIONS, ["the sailor", "Cook", "the whale"])
    assert exact.values["exact_match"] == 1.0  # articles and case do not count
    labels = measure_written(REVIEW, REVIEWS[:2], ["Positive", "no idea"])
    assert labels.values["accuracy"] == 0.5
    summary = load_template("en/summarization/article-summary")
    found = measure_written(summary, [{"document": "a b", "summary": ["the sea", "a whale"]}], ["a whale"])
    assert found.values[found.primary] == pytest.approx(1.0)
    marked = load_template("en/token-classification/entity-markup")
    row = {"tokens": ["Ahab", "sang"], "tags": ["B-PER", "O"]}
    tags = measure_written(marked, [row, row], [marked.gold_text(row), "nothing"])
    assert tags.values[tags.primary] == pytest.approx(2 / 3)  # precision 1, recall 1/2


def test_requests_that_cannot_be_met_are_one_line(scorer):
    with pytest.raises(ConfigError, match="score its choices, or hold the writing to them"):
        answer_by_writing(scorer, REVIEW, PromptRows(tests=REVIEWS))
    with pytest.raises(ConfigError, match="leave the constraint out"):
        answer_by_writing(scorer, CLOSED, PromptRows(tests=QUESTIONS), writing=Writing(is_constrained=True))
    with pytest.raises(ConfigError, match="write samples >= 1 and temperature > 0"):
        Writing(samples=0)
    with pytest.raises(DataError, match="needs the field 'question'"):
        answer_by_writing(scorer, CLOSED, PromptRows(tests=[{"answers": []}]))


def test_every_end_that_the_folder_names_ends_an_answer(tiny_model, tmp_path):
    folder = tmp_path / "chat"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 7, 9]}')
    assert load_for_evaluation(folder).scorer("float32").stop_ids == (0, 7, 9)
    (folder / "generation_config.json").write_text('{"eos_token_id": 70000}')
    with pytest.raises(ModelError, match="must be token ids below"):
        load_for_evaluation(folder)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [11]}))
    assert load_for_evaluation(folder).stop_ids == (0, 11)
