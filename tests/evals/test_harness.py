"""Our engine against lm-evaluation-harness's own Hugging Face model, on the same requests and through a whole task."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.evals.harness import make_harness_model, run_harness
from chinchilla_lm.evals.scorer import Scorer
from chinchilla_lm.model.huggingface import load_model

pytestmark = pytest.mark.slow  # importing it takes 10 s
pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'chinchilla-lm[eval]'")

QUESTIONS = [
    {"question": "what was the sea", "choices": ["calm", "a ship", "no"], "label": 0},
    {"question": "who sang", "choices": ["the cook", "the sailor", "a whale that came near the ship"], "label": 1},
    {"question": "who said no", "choices": ["a whale", "the sailor", "the cook"], "label": 2},
]
TASK = """
task: sea
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: "question {{{{question}}}} answer:"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def ours(tiny_model):
    model = load_model(tiny_model).eval()
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    return model, Scorer(model, tokenizer, start_id=0, stop_ids=(0,), weights="float32", slots=4)


@pytest.fixture(scope="module")
def theirs(tiny_model):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(tiny_model), batch_size=4, device="cpu")


def _requests(kind: str, arguments: list[tuple]):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_log_likelihoods_are_those_of_its_own_model(ours, theirs):
    model = make_harness_model(*ours)
    pairs = [(f"question {one['question']} answer:", " " + choice) for one in QUESTIONS for choice in one["choices"]]
    pairs += [("", "the sea was calm"), ("the sea ", "was calm"), ("the sea " * 300, "was calm")]
    for (mine, is_mine), (its, is_its) in zip(
        model.loglikelihood(_requests("loglikelihood", pairs)),
        theirs.loglikelihood(_requests("loglikelihood", pairs)),
        strict=True,
    ):
        assert mine == pytest.approx(its, abs=1e-4)
        assert is_mine == is_its
    texts = [("the sailor sang " * 200,), ("the sea",)]
    mine = model.loglikelihood_rolling(_requests("loglikelihood_rolling", texts))
    its = theirs.loglikelihood_rolling(_requests("loglikelihood_rolling", texts))
    assert mine == pytest.approx(its, abs=2e-3, rel=1e-5)  # sums of up to 240 tokens in float32


def test_what_fits_no_context_is_one_line_and_a_short_context_is_shared(ours):
    model = make_harness_model(*ours)
    with pytest.raises(DataError, match="tokens cannot be priced in a context of"):
        model.loglikelihood(_requests("loglikelihood", [("the sea", " was calm" * 300)]))
    capacity = ours[1].engine.capacity
    asked = [("the sailor sang", {"until": [], "max_gen_toks": most}) for most in (capacity, 5)]
    whole, short = model.generate_until(_requests("generate_until", asked))
    assert whole.startswith(short)  # the prompt was read, not its last token alone


def test_generated_text_is_that_of_its_own_model(ours, theirs):
    model = make_harness_model(*ours)
    wishes = [("the sea was", {"until": ["."], "max_gen_toks": 12}), ("a whale", {"until": " s", "max_gen_toks": 20})]
    assert model.generate_until(_requests("generate_until", wishes)) == theirs.generate_until(
        _requests("generate_until", wishes)
    )


def test_a_task_gives_the_numbers_of_its_own_model(ours, theirs, tmp_path, capsys):
    import lm_eval
    from lm_eval.tasks import TaskManager

    path = tmp_path / "sea.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    (tmp_path / "sea.yaml").write_text(TASK.format(path=path))
    mine = run_harness(*ours, ["sea"], task_folder=tmp_path)["sea"]
    manager = TaskManager(include_path=str(tmp_path))
    its = lm_eval.simple_evaluate(model=theirs, tasks=["sea"], task_manager=manager, bootstrap_iters=1)
    for metric in ("acc,none", "acc_norm,none", "acc_stderr,none", "acc_norm_stderr,none"):
        assert mine[metric] == its["results"]["sea"][metric]
    with pytest.raises(ConfigError, match="knows no task 'see'"):
        run_harness(*ours, ["see"], task_folder=tmp_path)
