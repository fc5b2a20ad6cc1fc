"""The gallery page is written from the files, and the package keeps its floor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from chinchilla_lm.prompt.gallery import prompts_page, rules_of
from chinchilla_lm.prompt.library_files import library_templates, load_template

PAGE = Path(__file__).resolve().parents[2] / "docs" / "prompts.md"


def test_the_page_is_the_files():
    assert PAGE.read_text(encoding="utf-8") == prompts_page(library_templates()), "run docs/make_prompts_page.py"


def test_every_wording_is_shown_once_in_both_languages():
    page = PAGE.read_text(encoding="utf-8")
    for template in library_templates():
        assert page.count(f"### {template.name}\n") == 1
    assert "中文" in page
    assert "English" in page


def test_the_rules_of_a_template_are_those_it_can_serve():
    assert rules_of(load_template("en/text-classification/sentiment-review"))[-3:] == ("cc", "bc", "channel")
    assert "bc" not in rules_of(load_template("en/multiple-choice/question-answer"))
    assert "bc" in rules_of(load_template("en/multiple-choice/question-letters"))
    assert rules_of(load_template("en/translation/pair-names")) == ()


def test_prompts_reach_no_torch():
    modules = "gallery library_files rules choosing demonstrations ordering search lm_eval_tasks".split()  # noqa: SIM905
    code = "import sys\n" + "".join(f"import chinchilla_lm.prompt.{name}\n" for name in modules)
    code += "print([m for m in ('torch', 'transformers', 'scipy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_file_on_the_page_loads(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    template = load_template(str(path))
    assert template.render(template.example).prefix == "Review: Ten hours well spent.\nRecommended:"
    assert template.gold_text(template.example) == "yes"
