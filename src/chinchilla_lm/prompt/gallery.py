"""The gallery: every template of the library shown on its example, as one Markdown page.

`docs/make_prompts_page.py` writes it; a test compares, so that the page cannot drift from the files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.tasks import TASKS
from chinchilla_lm.prompt.choosing import has_same_choices
from chinchilla_lm.prompt.plan import RULES, check_rules
from chinchilla_lm.prompt.template import Template

_LANGUAGE_NAMES = {"en": "English", "zh": "中文"}
_SHOWN_CHOICES = 6


def prompts_page(templates: Sequence[Template]) -> str:
    """Return the page.

    Args:
        templates: the library's, in the order of their names.

    Returns:
        Markdown: one part a task and language, one entry a template.
    """
    lines = ["# Prompts", ""]
    for task in TASKS:
        chosen = [template for template in templates if template.task == task]
        if chosen:
            lines += [f"## {task}", ""]
        for language, named in _LANGUAGE_NAMES.items():
            for template in chosen:
                if template.language == language:
                    lines += _entry(template, named)
    return (
        "\n".join(lines)
        .replace("# Prompts\n", _INTRODUCTION.format(count=len(templates), example=_OWN_EXAMPLE), 1)
        .rstrip()
        + "\n"
    )


_INTRODUCTION = """# Prompts

Written by `make docs` from the template files themselves: {count} wordings, each shown on its example row. A name goes
after `--template`; so does the path of a YAML file of yours, with the same keys. The text in ⟦ ⟧ is the right answer as
a demonstration shows it; a prompt to be answered ends before it, never in a space.

A file of your own, checked when it is read (a wrong key, a word that two labels share, a prompt that ends in a space:
one line that says so). The keys are the fields of `chinchilla_lm.prompt.template.Template`:

```yaml
{example}```

Text between braces is Jinja2 in a sandbox: fields, `if`, `for`, `set` and plain filters, at most 200,000 characters.
"""

_OWN_EXAMPLE = """\
task: text-classification
language: en
item: "Review: {{ text }}\\nRecommended:"
fields: [text]
labels: {"0": "no", "1": "yes"}   # label in the rows: word in the prompt
domain: "Recommended:"            # the prompt without the row, for the rule pmi
example: {text: "Ten hours well spent.", label: "1"}
"""


def rules_of(template: Template) -> tuple[str, ...]:
    """Return the scoring rules that a template can serve, in the order of `RULES`; none for one that writes."""
    # Batch calibration compares a choice with itself in other rows: it must not change with the row.
    emptied = dataclasses.replace(template, content=()).content_free(template.example, "-")
    is_fixed = template.kind == "choice" and has_same_choices(template, [template.example, emptied])
    possible = []
    for rule in RULES:
        try:
            check_rules(template, (rule,))
        except ConfigError:
            continue
        if rule != "bc" or is_fixed:
            possible.append(rule)
    return tuple(possible)


def _entry(template: Template, language: str) -> list[str]:
    parts = template.render(template.example)
    answer = template.delimiter + template.answer_text(template.example)
    lines = [f"### {template.name}", ""]
    notes = [language, f"fields {', '.join(f'`{name}`' for name in template.fields)}"]
    if template.optional:
        notes.append(f"if present {', '.join(f'`{name}`' for name in template.optional)}")
    lines += ["; ".join(notes) + (f". From {template.source}." if template.source else "."), ""]
    # A fence longer than any in the text.
    lines += ["````text", f"{parts.prefix}⟦{answer}⟧", "````", ""]
    if template.kind == "choice":
        shown = [f"`{choice}`" for choice in parts.answers[:_SHOWN_CHOICES]]
        more = f" and {len(parts.answers) - _SHOWN_CHOICES} more" if len(parts.answers) > _SHOWN_CHOICES else ""
        premise = (
            "" if template.contexts else f" PMI premise: `{_on_one_line(template.domain_text(template.example))}`."
        )
        lines += [f"Choices: {', '.join(shown)}{more}. Rules: {', '.join(rules_of(template))}.{premise}", ""]
    else:
        stops = ", ".join(f"`{_on_one_line(stop)}`" for stop in template.stops)
        lines += [
            f"Written: at most {template.max_tokens} tokens, ends before {stops}; read by `{template.extract.rule}`.",
            "",
        ]
    if template.thought is not None:
        lines += _thought_lines(template)
    return lines


def _thought_lines(template: Template) -> list[str]:
    thinking = template.thinking()
    shown = f"{thinking.item_text(template.example)}⟦{thinking.delimiter}{thinking.answer_text(template.example)}⟧"
    return [f"With reasoning (`+thought`), read by `{thinking.extract.rule}`:", "", "````text", shown, "````", ""]


def _on_one_line(text: str) -> str:
    return text.replace("\n", "⏎")
