"""Write docs/laws/published.md from the laws themselves, so that the page cannot drift; `--check` only compares.

Run: PYTHONPATH=src python docs/make_laws_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from written_page import write_or_check

from chinchilla_lm.laws.forms.record import AnyLaw
from chinchilla_lm.laws.published import PUBLISHED_LAWS, PublishedLaw
from chinchilla_lm.laws.published.allocations import KAPLAN_CURVES, PF_DAY_FLOPS
from chinchilla_lm.laws.published.hyperparameters import HYPERPARAMETER_LAWS, PowerProduct

PAGE = Path(__file__).with_name("laws") / "published.md"
GOPHER_FLOPS = 5.76e23  # the budget of Gopher and Chinchilla (Hoffmann et al. 2022)
_DERIVED = ("form", "params_convention", "a", "b", "line")

_HEAD = """# Published laws

Written by `python docs/make_laws_page.py` from `laws/published`; a test compares. A name goes to
`chinchilla plan --law NAME`. Sizes and tokens are those of 5.76e23 FLOPs (Chinchilla's budget) at C = 6 N D. Losses
hold for each source's own text and tokenizer only.
"""


def laws_page() -> str:
    """Return the page: the laws, their constants, sources and notes, Kaplan's curves, the rules of training."""
    rows = ["| law | form | N counts | a | N* | D* | D/N | largest run |", "|---|---|---|---|---|---|---|---|"]
    rows += [_summary(row) for row in PUBLISHED_LAWS.values()]
    details = [_details(row) for row in PUBLISHED_LAWS.values()]
    return "\n".join(
        [_HEAD, *rows, "", "## Constants, sources, notes", "", *details, "", *_curves(), "", *_rules(), ""]
    )


def _summary(row: PublishedLaw) -> str:
    law = row.law
    params, tokens = law.optimum(GOPHER_FLOPS)
    exponent = f"{law.a:.4f}" if hasattr(law, "a") else f"{law.fresh.a:.4f}"  # type: ignore[union-attr]
    largest = "not stated" if row.largest_flops is None else f"{row.largest_flops:.3g}"
    cells = (f"`{row.name}`", law.form, law.params_convention, exponent)
    sizes = (f"{params / 1e9:.1f}B", f"{tokens / 1e12:.3g}T", f"{tokens / params:.3g}", largest)
    return f"| {' | '.join((*cells, *sizes))} |"


def _details(row: PublishedLaw) -> str:
    note = f" Note: {row.note}." if row.note else ""
    return f"- **`{row.name}`**: {_constants(row.law)}. Source: {row.source}.{note}"


def _constants(law: AnyLaw) -> str:
    numbers = {name: number for name, number in law.to_dict().items() if name not in _DERIVED}
    return ", ".join(f"{name} = {number:.8g}" for name, number in numbers.items())


def _curves() -> list[str]:
    lines = ["## Kaplan's curves of one variable", ""]
    lines += ["(Kaplan et al. 2020, eq. 1.1 to 1.3: L = (scale / x)^exponent, not the constants of the joint law.)", ""]
    for curve in KAPLAN_CURVES.values():
        unit = f" FLOPs = {curve.scale / PF_DAY_FLOPS:.3g} PF-days" if curve.variable == "flops" else ""
        lines.append(f"- {curve.variable}: exponent {curve.exponent:g}, scale {curve.scale:.4g}{unit}")
    return lines


def _rules() -> list[str]:
    lines = ["## Learning rate and batch", ""]
    for rule in HYPERPARAMETER_LAWS.values():
        peak, batch = _product(rule.lr_peak), _product(rule.batch_tokens)
        text = f"- **`{rule.name}`** ({rule.params_convention}): peak rate {peak}; tokens in a batch {batch}. "
        lines.append(f"{text}Source: {rule.source}. Note: {rule.note}.")
    return lines


def _product(power: PowerProduct) -> str:
    exponents = (("N", power.params), ("D", power.tokens), ("C", power.flops))
    return " ".join([f"{power.scale:g}", *(f"{letter}^{exponent:g}" for letter, exponent in exponents if exponent)])


if __name__ == "__main__":
    sys.exit(write_or_check(laws_page(), PAGE))
