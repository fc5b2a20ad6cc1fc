"""Tables of runs: names people use, units that are stated, and every way a table can be wrong."""

from __future__ import annotations

import math

import pytest

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.laws.columns import Layout
from chinchilla_lm.laws.table import read_runs

HEADER = "n_params,n_tokens,flops,loss\n"
ROW = "1e8,2e9,1.2e18,3.1\n"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def read(tmp_path):
    def reader(text, **layout):
        return read_runs(write(tmp_path / "runs.csv", text), Layout(**layout))

    return reader


def test_columns_under_common_names_in_any_order(read):
    table = read("Loss,D,N,extra\n3.1,2e9,1e8,x\n\n2.9,4e9,2e8,y\n")
    assert table.params.tolist() == [1e8, 2e8]
    assert table.tokens.tolist() == [2e9, 4e9]
    assert table.flops.tolist() == [1.2e18, 4.8e18]
    assert table.lines == (2, 4)
    assert "no flops column" in table.warnings[0]


def test_own_names_are_mapped(read):
    text = "size,n_tokens,flops,loss\n" + ROW
    assert read(text, columns={"params": "size"}).params.tolist() == [1e8]
    assert read(text, columns={"params": " SIZE "}).params.tolist() == [1e8]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_semicolons_and_tabs_separate_too(read, mark):
    assert read((HEADER + ROW).replace(",", mark)).tokens.tolist() == [2e9]


def test_a_byte_order_mark_is_no_part_of_a_name(read):
    assert read("\ufeff" + HEADER + ROW).warnings == ()


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("params (M),tokens (B),loss", "100,2,3.1"),
        ("params_millions,tokens_billions,loss", "100,2,3.1"),
        ("params [M],tokens in billions,loss", "100,2,3.1"),
        ("n_params_M,n_tokens_B,loss", "100,2,3.1"),
        ("n_params,n_tokens,loss", "100M,2B,3.1"),
    ],
)
def test_units_that_the_file_states_are_read(read, header, row):
    table = read(f"{header}\n{row}\n")
    assert table.params.tolist() == pytest.approx([1e8])
    assert table.tokens.tolist() == pytest.approx([2e9])
    if "n_params,n" not in header:
        assert any("each number counts 1e+06" in warning for warning in table.warnings)


def test_units_that_the_user_states_are_read(read):
    table = read(
        "n_params,n_tokens,flops,loss,n_unique_tokens\n100,2,1,4.5,1\n",
        units={"params": "M", "tokens": "B", "flops": "PF-days", "loss": "bits", "unique_tokens": "B"},
    )
    assert table.flops.tolist() == [8.64e19]  # 1e15 FLOP/s for a day
    assert table.loss.tolist() == pytest.approx([4.5 * math.log(2)])
    assert table.unique_tokens is not None
    assert table.unique_tokens.tolist() == [1e9]


def test_tokens_are_counted_from_steps(read):
    text = "run,n_params,step,loss\na,1e8,1000,3.1\na,1e8,2000,3.0\n"
    table = read(text, tokens_per_step=524288.0)
    assert table.tokens.tolist() == [1000 * 524288.0, 2000 * 524288.0]
    assert table.labels == ("a", "a")
    with pytest.raises(DataError, match="--tokens-per-step 524288"):
        read(text)


def test_flops_can_be_replaced_by_6nd(read):
    table = read(HEADER + "1e8,2e9,9.9e18,3.1\n", columns={"flops": "6ND"})
    assert table.flops.tolist() == [1.2e18]
    assert table.warnings == ()


def test_conditions_choose_lines_and_say_how_many_they_left_out(read):
    text = "n_params,n_tokens,loss,split\n1e8,2e9,3.1,final\n1e8,1e9,3.4,mid\n"
    table = read(text, where=("split=final",))
    assert table.loss.tolist() == [3.1]
    assert any("1 of 2 lines do not have split=final: left out" in warning for warning in table.warnings)
    for where, words in (("split=last", "no line with split=last"), ("split", "COLUMN=VALUE"), ("spl=1", "'split'?")):
        with pytest.raises(DataError) as caught:
            read(text, where=(where,))
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_params,n_tokens,flops,los\n1,1,6,3\n", "no column 'loss' for loss; did you mean 'los'"),
        ("n_parms,n_tokens,loss\n1,1,3\n", "did you mean 'n_parms'"),
        ("n_params,n_tokens,loss,loss\n1,1,3,3\n", "2 columns named 'loss'"),
        ("n_params,n_tokens,loss\n1e8,2e9,nan\n", ":2: loss is 'nan'"),
        ("n_params,n_tokens,loss\n1e8,2e9,3\n1e8,-2e9,3\n", ":3: tokens is '-2e9'"),
        ("n_params,n_tokens,loss\n1e8,0,3\n", ":2: tokens is '0'"),
        ("n_params,n_tokens,loss\n1e8,2e9\n", ":2: loss is nothing"),
        ("n_params,n_tokens,loss\n1e8,2e9,three\n", ":2: loss is 'three'"),
        ("n_params;n_tokens;loss\n1e8;2e9;3,1\n", "write 3.1 with a point"),
        ("n_params,n_tokens,flops,loss\n1e8,2e9,inf,3\n", ":2: flops is 'inf'"),
        ("n_params,n_tokens,loss\n1e8,2,000,000,3\n", ":2: 5 cells under a header of 3"),
        ("n_params,n_tokens,loss\n", "a header and no runs"),
        ("1e8,2e9,3.1\n", "begins with numbers"),
        ("", "is empty"),
        (HEADER + ROW + ROW, ":3: 1 line repeats another exactly: 3 (as 2)"),
        (HEADER + ROW * 2 + "1e8,4e9,2.4e18,3.0\n", "--duplicates drop"),
        (HEADER + ROW + "1e8,4e9,2.4e18,3.0\n1e8,8e9,4.8e21,2.9\n", ":4: flops are 1e+03 times 6 * params * tokens"),
        ("n_params,n_tokens,loss\n0.1,2,3\n7,140,2\n", "params end at 7, too few for a language model"),
        ("n_params,n_tokens,loss\n1e8,2,3\n7e9,140,2\n", "--tokens-unit B or M"),
        (HEADER + "1e5,2e6,1.2e18,3\n2e5,2e6,2.4e18,2.9\n", "are 1e+06 times 6 * params * tokens, so a unit"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(read, text, words):
    with pytest.raises(DataError) as caught:
        read(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"columns": {"params": "siez"}}, "no column 'siez', which --params-column names"),
        ({"units": {"params": "X"}}, "--params-unit 'X' is unknown; write 1, k, M, B or T"),
        ({"units": {"loss": "B"}}, "write nats or bits"),
        ({"units": {"tokens": "M"}}, "disagree"),
        ({"columns": {"unique_tokens": "u"}}, "--unique-tokens-column"),
    ],
)
def test_a_wrong_layout_is_refused(read, layout, words):
    with pytest.raises(DataError) as caught:
        read("n_params,tokens (B),loss\n1e8,2,3\n", **layout)
    assert words in str(caught.value)


def test_small_numbers_are_taken_when_the_user_says_that_they_are_right(read):
    table = read("n_params,n_tokens,loss\n7,140,2\n", units={"params": "1", "tokens": "1"})
    assert table.params.tolist() == [7]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_runs(tmp_path / "none.csv")
    (tmp_path / "table.xlsx").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_runs(tmp_path / "table.xlsx")


def test_duplicates_are_kept_or_dropped_on_request_and_said(read):
    text = HEADER + ROW + ROW + "1e8,4e9,2.4e18,3.0\n"
    kept, dropped = read(text, duplicates="keep"), read(text, duplicates="drop")
    assert len(kept.loss) == 3
    assert "counted twice: 3 (as 2)" in kept.warnings[0]
    assert dropped.lines == (2, 4)
    assert "3 (as 2): left out" in dropped.warnings[0]


def test_other_counts_of_compute_and_odd_losses_are_warned_of(read):
    table = read(HEADER + "1e8,2e9,2.4e18,45\n2e8,2e9,4.7e18,3.1\n")
    assert any("by a factor of up to 2" in warning for warning in table.warnings)
    assert any("logarithm of a perplexity" in warning and "line 2" in warning for warning in table.warnings)


def test_counts_beyond_int64_are_floats(read):
    table = read("n_params,n_tokens,loss\n70000000000,1400000000000,2.0\n")
    assert table.flops[0] == pytest.approx(5.88e23)


def test_a_hundred_thousand_lines_are_read(read):
    rows = "".join(f"{1e6 + i},{2e9 + i},{3 - i * 1e-6:.7f}\n" for i in range(100_000))
    assert len(read("n_params,n_tokens,loss\n" + rows).loss) == 100_000


@pytest.mark.parametrize(
    "name", ["epoch_chinchilla", "datablations_c4", "olmo_ladder_checkpoints", "clark_routed_curves"]
)
def test_public_tables_are_read_as_they_are(shared_data, name):
    table = read_runs(shared_data / "laws" / f"{name}.csv")
    assert len(table.loss) >= 240
    assert table.warnings == ()
