"""Tables of runs: names people use, and every way a table can be wrong."""

from __future__ import annotations

import pytest

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.laws.table import read_runs


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_under_common_names_in_any_order(tmp_path):
    path = write(tmp_path / "runs.csv", "Loss,D,N,extra\n3.1,2e9,1e8,x\n\n2.9,4e9,2e8,y\n")
    table = read_runs(path)
    assert table.params.tolist() == [1e8, 2e8]
    assert table.tokens.tolist() == [2e9, 4e9]
    assert table.flops.tolist() == [1.2e18, 4.8e18]
    assert "no flops column" in table.warnings[0]


def test_own_names_are_mapped(tmp_path):
    path = write(tmp_path / "runs.csv", "size,n_tokens,flops,loss\n1e8,2e9,1.2e18,3.1\n")
    assert read_runs(path, {"params": "size"}).params.tolist() == [1e8]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = write(tmp_path / "runs.csv", "\ufeffn_params,n_tokens,flops,loss\n1e8,2e9,1.2e18,3.1\n")
    assert read_runs(path).warnings == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_params,n_tokens,flops,los\n1,1,6,3\n", "no column 'loss' for loss; did you mean 'los'"),
        ("n_parms,n_tokens,loss\n1,1,3\n", "did you mean 'n_parms'"),
        ("n_params,n_tokens,loss,loss\n1,1,3,3\n", "2 columns named 'loss'"),
        ("n_params,n_tokens,loss\n1e8,2e9,nan\n", ":2: loss is 'nan'"),
        ("n_params,n_tokens,loss\n1e8,2e9,3\n1e8,-2e9,3\n", ":3: tokens is '-2e9'"),
        ("n_params,n_tokens,loss\n1e8,2e9\n", ":2: loss is nothing"),
        ("n_params,n_tokens,loss\n1e8,2e9,three\n", ":2: loss is 'three'"),
        ("n_params,n_tokens,flops,loss\n1e8,2e9,inf,3\n", ":2: flops is 'inf'"),
        ("n_params,n_tokens,loss\n", "no runs"),
        ("", "is empty"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        read_runs(write(tmp_path / "runs.csv", text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_runs(tmp_path / "none.csv")


def test_repeats_and_odd_compute_are_warned_of_and_kept(tmp_path):
    rows = "1e8,2e9,1.2e18,3.1\n1e8,2e9,1.2e18,3.1\n1e8,4e9,2.4e21,3.0\n"
    table = read_runs(write(tmp_path / "runs.csv", "n_params,n_tokens,flops,loss\n" + rows))
    assert len(table.loss) == 3
    assert any("3 (as 2)" in warning for warning in table.warnings)
    assert any("by a factor of up to 1e+03" in warning for warning in table.warnings)


def test_counts_beyond_int64_are_floats(tmp_path):
    path = write(tmp_path / "runs.csv", "n_params,n_tokens,loss\n70000000000,1400000000000,2.0\n")
    assert read_runs(path).flops[0] == pytest.approx(5.88e23)
