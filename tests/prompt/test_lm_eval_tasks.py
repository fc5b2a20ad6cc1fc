"""lm-evaluation-harness's own task files: its Jinja2 and ours render the same prompts; what runs Python is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jinja2
import pytest

from chinchilla_lm.core.errors import ChinchillaError, ConfigError
from chinchilla_lm.prompt import library_files, lm_eval_tasks
from chinchilla_lm.prompt.extraction import extract_answer
from chinchilla_lm.prompt.library_files import open_template
from chinchilla_lm.prompt.lm_eval_tasks import import_task
from chinchilla_lm.prompt.plan import plan_scores
from chinchilla_lm.prompt.yaml_files import read_yaml

ARC = r"""
tag: [ai2_arc]
task: arc_easy
dataset_path: allenai/ai2_arc
dataset_name: ARC-Easy
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
metric_list:
  - metric: acc
    aggregation: mean
  - metric: acc_norm
num_fewshot: 2
"""
DOC = {"question": "What is wet?", "choices": {"text": ["sand", "water"], "label": ["A", "B"]}, "answerKey": "B"}


def write(folder, text, name="task.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_multiple_choice_task(tmp_path):
    task = import_task(write(tmp_path, ARC))
    parts = task.template.render(DOC, [DOC])
    assert parts.prefix == "Question: What is wet?\nAnswer: water\n\nQuestion: What is wet?\nAnswer:"
    assert parts.choices == (" sand", " water")
    assert task.template.gold_index(DOC) == 1
    assert (task.name, task.dataset, task.shots) == ("arc_easy", ("allenai/ai2_arc", "ARC-Easy"), 2)
    assert task.metrics == ("acc", "acc_norm")
    assert task.splits == {"training": "train", "validation": "validation", "test": "test"}
    assert task.template.domain_text(DOC) == "Answer:"


def test_a_list_of_choices_and_a_columns_name(tmp_path):
    path = write(tmp_path, """
task: sst2
output_type: multiple_choice
doc_to_text: sentence
doc_to_target: label
doc_to_choice: ["it's bad", "good"]
description: "Say how it is.\\n\\n"
""")  # fmt: skip
    template = import_task(path).template
    row = {"sentence": "fine ", "label": 1}
    assert template.render(row).prefix == "Say how it is.\n\nfine"
    assert template.render(row).answers == ("it's bad", "good")
    assert template.gold_text(row) == "good"


def test_a_loglikelihood_task_scores_one_continuation(tmp_path):
    path = write(tmp_path, """
task: lambada_openai
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
""")  # fmt: skip
    requests = plan_scores(import_task(path).template, [{"text": "the cat sat"}])
    assert [(request.prefix, request.continuation) for request in requests] == [("the cat", " sat")]


def test_a_generation_task_with_a_filter_and_an_include(tmp_path):
    write(tmp_path, """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:", "</s>"], max_gen_toks: 99}
filter_list:
  - name: strict
    filter: [{function: regex, regex_pattern: "#### (\\\\d+)"}]
""", "base.yaml")  # fmt: skip
    task = import_task(write(tmp_path, "include: base.yaml\ntask: gsm8k\n"))
    template = task.template
    assert (template.kind, template.stops, template.max_tokens) == ("generate", ("Question:", "</s>"), 99)
    assert (template.extract.rule, template.extract.pattern) == ("regex", "#### (\\d+)")
    assert template.answer_text({"question": "q", "answer": "so #### 4"}) == "so #### 4"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'doc_to_choice: "{{choices.text}}"',
            "doc_to_choice: !function utils.choices",
            "!function utils.choices runs Python",
        ),
        (
            "tag: [ai2_arc]",
            "process_docs: utils.go",
            "process_docs = 'utils.go': it runs Python; run the task through lm_eval",
        ),
        ("output_type: multiple_choice", "output_type: loglikelihood_rolling", "output_type = 'loglikelihood_rolling'"),
        ('doc_to_choice: "{{choices.text}}"', "", "multiple_choice needs it"),
        ("tag: [ai2_arc]", "class: x.Y", "class = 'x.Y': it runs Python"),
        ("{{question}}", "{{ question|regex_replace('a', 'b') }}", "the filter regex_replace is not known"),
        ("{{question}}", "{{ question.__class__ }}", "__class__ is private"),
        ("tag: [ai2_arc]", "include: ../other.yaml", "a file of the same folder"),
        ("tag: [ai2_arc]", 'target_delimiter: " -> "', "target_delimiter = ' -> '"),
    ],
)
def test_what_is_not_simple_is_refused_in_one_line(tmp_path, old, new, message):
    assert old in ARC
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as refusal:
        import_task(write(tmp_path, ARC.replace(old, new)))
    assert "\n" not in str(refusal.value)


GENERATION = 'output_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'


@pytest.mark.parametrize(
    "line",
    [
        "num_fewshot: many",
        "metric_list: 3",
        "filter_list: strict",
        "filter_list: [strict]",
        "filter_list: [{filter: [strict]}]",
        "generation_kwargs: [greedy]",
        "generation_kwargs: {until: 5}",
        "generation_kwargs: {until: [5]}",
        "generation_kwargs: {max_gen_toks: lots}",
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_in_one_line(tmp_path, line):
    with pytest.raises(ConfigError, match="is read; run the task through lm_eval itself") as refusal:
        import_task(write(tmp_path, GENERATION + line + "\n"))
    assert "\n" not in str(refusal.value)


def test_what_a_task_leaves_out_is_what_the_library_takes(tmp_path):
    filters = 'filter_list: [{filter: [{function: regex}]}]\nfewshot_delimiter: "\\n###\\n"\n'
    template = import_task(write(tmp_path, GENERATION + filters)).template
    assert template.stops == ("\n###\n",)  # its fewshot_delimiter
    assert template.max_tokens == 256
    assert extract_answer(template.extract, "so #### 1,234") == "1,234"


def test_a_file_is_read_once(tmp_path, monkeypatch):
    read: list[Path] = []
    for module in (library_files, lm_eval_tasks):
        monkeypatch.setattr(module, "read_yaml", lambda path: read.append(path) or read_yaml(path))
    own = "task: text-generation\nlanguage: en\nitem: '{{ text }}'\nfields: [text]\nanswer: a\nexample: {text: a}\n"
    assert open_template(str(write(tmp_path, own, "own.yaml")))[1] is False
    assert open_template(str(write(tmp_path, GENERATION)))[1] is True
    assert len(read) == 2


def test_an_include_of_itself_ends(tmp_path):
    with pytest.raises(ConfigError, match="at most 5 deep"):
        import_task(write(tmp_path, "include: task.yaml\n"))


FOLDER = importlib.util.find_spec("lm_eval")
TASKS = Path(FOLDER.submodule_search_locations[0], "tasks") if FOLDER and FOLDER.submodule_search_locations else None
FIELDS = {
    "arc/arc_easy.yaml": DOC,
    "arc/arc_challenge.yaml": DOC,
    "piqa/piqa.yaml": {"goal": "open a jar", "sol1": "twist", "sol2": "shout", "label": 0},
    "openbookqa/openbookqa.yaml": {"question_stem": "The sun", **DOC, "answerKey": " A"},
    "glue/sst2/default.yaml": {"sentence": "fine", "label": 1},
    "super_glue/boolq/default.yaml": {"passage": "p", "question": "is it", "label": 1},
    "commonsense_qa/default.yaml": {"question": "q ", "choices": {"text": list("vwxyz")}, "answerKey": "C"},
    "lambada/lambada_openai.yaml": {"text": "one two three"},
    "gsm8k/gsm8k.yaml": {"question": "1+1?", "answer": "#### 2"},
    "sciq/sciq.yaml": {
        "support": "s", "question": "q", "correct_answer": "d",
        "distractor1": "a", "distractor2": "b", "distractor3": "c",
    },
}  # fmt: skip


@pytest.mark.skipif(TASKS is None, reason="lm_eval is not installed")
@pytest.mark.parametrize("name", FIELDS)
def test_the_harness_own_files_render_as_in_the_harness(name):
    row = FIELDS[name]
    path = TASKS / name
    template = import_task(path).template
    raw = read_yaml(path) if "include" not in read_yaml(path) else {**read_yaml(TASKS / "arc/arc_easy.yaml")}
    # As lm_eval.utils.apply_template does.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    text = raw["doc_to_text"]
    expected = str(row[text]) if text in row else environment.from_string(text).render(row)
    assert template.render(row).prefix == expected.rstrip(" ")
    choices = raw.get("doc_to_choice")
    if choices is not None:
        wanted = choices if isinstance(choices, list) else environment.compile_expression(choices.strip("{} "))(**row)
        assert list(template.render(row).answers) == [str(choice).strip() for choice in wanted]
        assert 0 <= template.gold_index(row) < len(wanted)


@pytest.mark.skipif(TASKS is None, reason="lm_eval is not installed")
def test_any_task_file_imports_or_is_one_clear_line():
    paths = sorted(TASKS.glob("[a-h]*/*.yaml"))[::12]
    imported = 0
    for path in paths:
        try:
            import_task(path)
            imported += 1
        except ChinchillaError as refusal:
            assert str(refusal).startswith(str(path.parent)), refusal  # noqa: PT017 - each refusal is looked at
            assert "\n" not in str(refusal)  # noqa: PT017
    assert len(paths) > 50
    assert imported > 0
