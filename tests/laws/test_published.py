"""Published laws: the papers' own size tables."""

from __future__ import annotations

import pytest

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.published import PUBLISHED_LAWS, published_law

# Hoffmann et al. 2022: table 3 (approach 1) and table A3 (approaches 2 and 3): params -> FLOPs, tokens.
# The 175B row of approach 3 is printed 1.26e24, a typing error for 1.26e25.
TABLES = {
    "hoffmann2022-approach1": (
        {4e8: (1.92e19, 8.0e9), 1e9: (1.21e20, 20.2e9), 1e10: (1.23e22, 205.1e9), 6.7e10: (5.76e23, 1.5e12)}
        | {1.75e11: (3.85e24, 3.7e12), 2.8e11: (9.90e24, 5.9e12), 1e12: (1.27e26, 21.2e12), 1e13: (1.3e28, 216.2e12)},
        0.02,
    ),
    "hoffmann2022-approach2": (
        {4e8: (1.84e19, 7.7e9), 1e9: (1.20e20, 20.0e9), 1e10: (1.32e22, 219.5e9), 6.7e10: (6.88e23, 1.7e12)}
        | {1.75e11: (4.54e24, 4.3e12), 2.8e11: (1.18e25, 7.1e12), 1e12: (1.59e26, 26.5e12), 1e13: (1.75e28, 292e12)},
        0.04,
    ),
    "hoffmann2022-approach3-tex": (
        {4e8: (2.21e19, 9.2e9), 1e9: (1.62e20, 27.1e9), 1e10: (2.46e22, 410.1e9), 6.7e10: (1.71e24, 4.1e12)}
        | {1.75e11: (1.26e25, 12e12), 2.8e11: (3.52e25, 20.1e12), 1e12: (5.65e26, 94.1e12), 1e13: (8.55e28, 1425.5e12)},
        0.12,
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_size_tables_of_hoffmann_are_met(name):
    table, tolerance = TABLES[name]
    for params, (flops, tokens) in table.items():
        found = published_law(name).law.optimum(flops)
        assert found[0] == pytest.approx(params, rel=tolerance)
        assert found[1] == pytest.approx(
            tokens, rel=tolerance + 0.05
        )  # two digits; approach 1's 67B row says 1.5T where 6 N D = C gives 1.43T


@pytest.mark.parametrize(
    ("name", "params", "tokens", "a"),
    [  # at Gopher's 5.76e23 FLOPs
        ("hoffmann2022-approach3", 32.2e9, 2.98e12, 0.4516),
        ("hoffmann2022-approach3-tex", 40.4e9, 2.38e12, 0.4565),
        ("besiroglu2024", 72.3e9, 1.33e12, 0.5126),
        ("muennighoff2023", 69.962e9, 1.37217e12, 0.5),
    ],
)
def test_optima_at_the_budget_of_gopher(name, params, tokens, a):
    law = published_law(name).law
    assert law.optimum(5.76e23) == pytest.approx((params, tokens), rel=3e-3)
    assert law.a == pytest.approx(a, abs=1e-4)


def test_kaplan_is_read_as_hoffmann_read_it():
    law = published_law("kaplan2020").law
    assert law.optimum(1e21)[0] == pytest.approx(4.68e9)
    assert law.a == 0.73
    assert law.params_convention == "non_embedding"


def test_every_law_has_a_source_and_its_own_name():
    for name, row in PUBLISHED_LAWS.items():
        assert row.name == name == name.lower()
        assert "20" in row.source


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(PlanError, match="did you mean 'besiroglu2024'"):
        published_law("besiroglou2024")
    assert published_law(" Besiroglu2024 ").name == "besiroglu2024"
