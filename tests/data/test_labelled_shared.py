"""Every labelled folder of the shared data reads into canonical rows, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from chinchilla_lm.data.labelled import read_rows, rows_for_task

# Folder, file, task, columns, rows as the folder's README counts them.
_FILES = [
    ("adversarial-advglue", "sst2_dev.jsonl", "text-classification", {}, 148),
    ("adversarial-advglue", "mnli_dev.jsonl", "text-classification", {}, 121),
    ("adversarial-advglue", "mnli_mm_dev.jsonl", "text-classification", {}, 162),
    ("adversarial-advglue", "qnli_dev.jsonl", "text-classification", {}, 148),
    ("adversarial-advglue", "qqp_dev.jsonl", "text-classification", {}, 78),
    ("adversarial-advglue", "rte_dev.jsonl", "text-classification", {}, 81),
    ("cloze-lambada-openai", "test.jsonl", "text-generation", {}, 5153),
    ("dialogue-kdconv-zh", "train.jsonl.gz", "dialogue", {}, 450),
    ("dialogue-sgd", "dev.jsonl.gz", "dialogue", {}, 1000),
    ("dialogue-topicalchat", "test.jsonl.gz", "dialogue", {}, 539),
    ("instruct-dolly-hhrlhf-small", "train.jsonl", "dialogue", {}, 999),
    ("instruct-dolly-hhrlhf-small", "train.jsonl", "text-generation", {}, 999),
    ("intent-banking77", "test.jsonl", "text-classification", {}, 3080),
    ("intent-clinc150", "test.jsonl", "text-classification", {}, 4500),
    ("mc-commonsenseqa", "dev.jsonl", "multiple-choice", {}, 1221),
    ("mc-zeroshot-pack", "piqa.jsonl", "multiple-choice", {}, 1838),
    ("mc-zeroshot-pack", "copa.jsonl", "multiple-choice", {}, 100),
    ("mc-zeroshot-pack", "openbookqa.jsonl", "multiple-choice", {}, 500),
    ("mc-zeroshot-pack", "arc_easy.jsonl", "multiple-choice", {}, 2376),
    ("mc-zeroshot-pack", "arc_challenge.jsonl", "multiple-choice", {}, 1172),
    ("mc-zeroshot-pack", "winogrande_xl_dev.jsonl", "multiple-choice", {}, 1267),
    ("mc-zeroshot-pack", "winograd_wsc273.jsonl", "multiple-choice", {}, 273),
    ("mc-zeroshot-pack", "boolq_dev.jsonl.gz", "multiple-choice", {}, 3270),
    ("ner-wnut17", "train.conll", "token-classification", {}, 3394),
    ("ner-wnut17", "dev.conll", "token-classification", {}, 1009),
    ("ner-wnut17", "test.conll", "token-classification", {}, 1287),
    ("pairs-blimp", "test.jsonl.gz", "multiple-choice", {}, 67000),
    ("qa-cmrc2018-zh", "train.jsonl.gz", "question-answering", {}, 2413),
    ("qa-cmrc2018-zh", "dev.jsonl.gz", "question-answering", {}, 806),
    ("qa-cmrc2018-zh", "test_trial.jsonl.gz", "question-answering", {}, 1000),
    ("qa-squad", "train_newwiki.jsonl.gz", "question-answering", {}, 7013),
    ("qa-squad", "test_squad11dev.jsonl.gz", "question-answering", {}, 10570),
    ("qa-xquad", "test_zh.jsonl.gz", "question-answering", {}, 1190),
    ("relation-semeval2010t8", "test.jsonl", "relation-extraction", {}, 2717),
    ("sentiment-rt", "test.jsonl", "text-classification", {}, 1068),
    ("sentiment-sst2", "test.jsonl", "text-classification", {}, 1821),
    ("summ-csl-zh", "test.jsonl", "summarization", {}, 1000),
    ("summ-scitldr", "test.jsonl", "summarization", {}, 618),
    ("topic-agnews-small", "test.jsonl", "text-classification", {"text": "title+text"}, 1000),
    ("topic-csl-zh", "test.jsonl", "text-classification", {}, 1000),
    ("translation-multi30k-ende", "dev.jsonl.gz", "translation", {"source": "en", "target": "de"}, 1014),
    ("translation-tatoeba-enzh", "test.jsonl.gz", "translation", {"source": "zh", "target": "en"}, 967),
]


@pytest.mark.parametrize(
    ("folder", "name", "task", "columns", "count"), _FILES, ids=[f"{row[0]}/{row[1]}/{row[2]}" for row in _FILES]
)
def test_reads_the_shared_folder(
    shared_data: Path, folder: str, name: str, task: str, columns: dict[str, str], count: int
) -> None:
    rows = rows_for_task(task, read_rows(shared_data / folder / name), columns, where=name)
    assert len(rows) == count
    if task == "relation-extraction":
        assert all(0 <= row["head"][0] < row["head"][1] <= len(row["text"]) for row in rows)
    if task == "token-classification":
        assert {tag[0] for row in rows for tag in row["tags"]} == {"B", "I", "O"}
    if task == "dialogue":
        assert {message["role"] for row in rows for message in row["messages"]} == {"user", "assistant"}
