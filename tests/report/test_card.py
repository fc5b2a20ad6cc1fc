"""The model card as the Hugging Face Hub's own reader sees it, and the PNG as an image reader sees it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from chinchilla_lm.core.errors import ChinchillaError
from chinchilla_lm.core.files import read_json, write_json, write_text
from chinchilla_lm.report.card import fenced, markdown_text, model_card, yaml_scalar
from chinchilla_lm.report.figures import save_png

HOSTILE = 'x: "y"\n---\n# heading\n```\n<img src=x onerror=alert(1)> \u2028 \x85 | `a` [b](c) \x00 😀'


def test_the_hub_reads_the_results(make_run: Any) -> None:
    folder = make_run(name="tiny-one")
    card = ModelCard(model_card(folder))
    outcome = read_json(folder / "eval.json")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"loss": outcome["loss"], "bits_per_byte": outcome["bits_per_byte"]}
    assert card.data.model_name == "tiny-one"
    assert card.data.library_name == "transformers"
    assert "license" not in card.data.to_dict()
    assert "chinchilla-lm" in card.data.tags


def test_the_card_says_how_it_was_made_predicted_and_loaded(make_run: Any) -> None:
    folder = make_run()
    text = model_card(folder)
    forecast = read_json(folder / "forecast.json")
    for words in (
        f"{forecast['loss']:.4f} | {forecast['low']:.4f} to {forecast['high']:.4f}",
        "inside the interval",
        "AutoModelForCausalLM.from_pretrained",
        "chinchilla generate",
        "Intended use and limits",
        "14 small runs",
        "KING:",
    ):
        assert words in text


@pytest.mark.parametrize("until", ["prepare", "sweep", "forecast", "train", "report"])
def test_a_card_of_any_stage_is_readable(make_run: Any, until: str) -> None:
    card = ModelCard(model_card(make_run(until=until)))
    assert card.data.to_dict()["language"] == "und"
    assert "not recorded" not in card.text


def test_hostile_text_neither_leaves_its_line_nor_its_fence(make_run: Any) -> None:
    samples = [{"prompt": HOSTILE, "text": "````", "temperature": 1.0}]
    folder = make_run(extra={"samples": samples})
    safe = (
        HOSTILE.replace("\x00", "")
        .replace("\\", "\\\\")
        .replace('"', '\\"')
        .replace("\n", "\\n")
        .replace("\x85", "\\u0085")
    )
    write_text(folder / "config.toml", f'corpus = "{safe}"\nbudget = "5m"\n')
    text = model_card(folder)
    card = ModelCard(text)
    assert card.data.eval_results[0].dataset_name.startswith('Held-out part of x: "y"\n---\n# heading')
    body = card.text
    assert "\n# heading" not in body.split("## Samples")[0]
    assert "<img" not in body.split("## Samples")[0]
    assert "\n`````text\n" in body


def test_yaml_scalars_come_back_unchanged() -> None:
    for value in (HOSTILE, "", "yes", "1e5", "a: b # c", "\u2029\ufeff", 1.5e-7, 3):
        assert yaml.safe_load(f"key: {yaml_scalar(value)}")["key"] == value


def test_markdown_text_is_one_line_without_live_signs() -> None:
    assert markdown_text("a\n# b *c* [d](e) <f>") == "a # b \\*c\\* \\[d\\](e) &lt;f>"
    assert fenced("a ``` b").startswith("````text\n")


def test_an_unestablished_law_is_said_in_the_card(make_run: Any) -> None:
    folder = make_run()
    forecast = read_json(folder / "forecast.json")
    write_json(folder / "forecast.json", {**forecast, "established": False, "reasons": ["too few rungs"]})
    assert "**not established**: too few rungs" in model_card(folder)


def test_the_headline_picture_is_a_png_of_readable_size(make_run: Any, tmp_path: Path) -> None:
    path = save_png(make_run(), tmp_path / "pictures" / "headline.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (2560, 1000)


def test_a_run_without_a_sweep_has_no_picture(make_run: Any, tmp_path: Path) -> None:
    with pytest.raises(ChinchillaError, match="no sweep and no forecast"):
        save_png(make_run(until="prepare"), tmp_path / "headline.png")
