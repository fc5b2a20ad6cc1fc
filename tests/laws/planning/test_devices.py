"""Devices: budgets of every kind become FLOPs, plans become bills, and the table's ratios are the vendors'."""

from __future__ import annotations

import json

import pytest

from chinchilla_lm.core.errors import DataError, PlanError
from chinchilla_lm.core.units import parse_budget
from chinchilla_lm.laws.planning.bill import add_bill
from chinchilla_lm.laws.planning.demand import Demand
from chinchilla_lm.laws.planning.devices import DEVICES, budget_in_flops, find_device
from chinchilla_lm.laws.planning.plan import add_shapes, make_plan
from chinchilla_lm.laws.planning.question import Conditions, Evidence, Goal
from chinchilla_lm.laws.published import published_law

LAW = published_law("besiroglu2024").law
H100_FLOPS_PER_S = 989.4e12


def test_budgets_of_every_kind_become_flops():
    eight = find_device("8xH100")
    busy_hour = 8 * 3600 * H100_FLOPS_PER_S * 0.4
    assert budget_in_flops(parse_budget("1e20"), None, None) == 1e20
    assert budget_in_flops(parse_budget("1h"), eight, None) == pytest.approx(busy_hour)
    assert budget_in_flops(parse_budget("60m"), eight, None) == pytest.approx(busy_hour)
    assert budget_in_flops(parse_budget("8 H100-hours"), None, None) == pytest.approx(busy_hour)
    assert budget_in_flops(parse_budget("8 GPU-hours"), eight, None) == pytest.approx(busy_hour)
    assert budget_in_flops(parse_budget("$20"), eight, 2.5) == pytest.approx(busy_hour)
    assert budget_in_flops(parse_budget("10s"), find_device("65e9"), None) == pytest.approx(65e10)


def test_the_bill_is_the_budget():
    device = find_device("A100", mfu=0.5)
    flops = budget_in_flops(parse_budget("$100"), device, 2.0)
    made = add_bill(make_plan(Goal(flops=flops), LAW), device, 2.0)
    assert made.cost == pytest.approx(100)
    assert made.gpu_hours == pytest.approx(50)
    serving = Conditions(demand=Demand(prefill_tokens=1e11))
    made = add_bill(make_plan(Goal(flops=flops), LAW, conditions=serving), device, 2.0)
    assert made.cost == pytest.approx(100)
    assert made.bill.training_gpu_hours < 50


def test_eight_devices_are_eight_times_as_fast_for_the_same_hours():
    alone, eight = (add_bill(make_plan(Goal(flops=1e20), LAW), find_device(name)) for name in ("H200", "8xH200"))
    assert eight.gpu_hours == alone.gpu_hours
    assert eight.bill.training_seconds == pytest.approx(alone.bill.training_seconds / 8)


def test_the_cost_of_a_loss_has_the_interval_of_its_compute():
    made = make_plan(Goal(loss=2.3), LAW, evidence=Evidence(largest_flops=3e21))
    billed = add_bill(made, find_device("H100"), 2.0)
    spread, flops = billed.intervals["cost"], made.intervals["flops"]
    assert spread.low / billed.cost == pytest.approx(flops.low / made.flops)
    assert spread.high / billed.cost == pytest.approx(flops.high / made.flops)


def test_a_model_too_large_for_the_memory_says_how_many_devices_hold_it():
    made = add_shapes(make_plan(Goal(flops=1e23), LAW), LAW, context=2048)
    note = add_bill(made, find_device("H100")).notes[-1]
    assert "spread it over" in note
    count = int(note.split("over ")[1].split()[0])
    assert not any("spread it" in note for note in add_bill(made, find_device(f"{count}xH100")).notes)


def test_a_run_directory_is_a_machine(tmp_path):
    env = {"device": "a laptop", "matmul_flops_per_s": {"float32": 5e10, "bfloat16": 8e10}}
    (tmp_path / "env.json").write_text(json.dumps(env))
    device = find_device(str(tmp_path), mfu=0.5)
    assert (device.name, device.peak_flops_per_s, device.flops_per_s) == ("a laptop", 8e10, 4e10)
    (tmp_path / "env.json").write_text("{}")
    with pytest.raises(PlanError, match="no matmul_flops_per_s"):
        find_device(str(tmp_path))
    (tmp_path / "env.json").unlink()
    with pytest.raises(DataError, match=r"env\.json"):
        find_device(str(tmp_path))


def test_the_table_agrees_with_the_vendors_ratios():
    # Hopper's compute is one chip's: H200 adds memory. Vendors print sparse bf16: 1,979 for Hopper, 4,500 for B200.
    assert DEVICES["H200"].peak_flops_per_s == DEVICES["H100"].peak_flops_per_s == pytest.approx(1979e12 / 2, rel=1e-3)
    assert DEVICES["B200"].peak_flops_per_s == 4500e12 / 2
    assert DEVICES["H200"].memory_bytes == 141e9
    for device in DEVICES.values():
        assert device.source
        assert 100 < device.peak_flops_per_s / device.bandwidth_bytes_per_s < 400  # FLOPs a byte, HBM machines


@pytest.mark.parametrize("text", ["tpu-v5p", "TPUv5p", "v5p", "4xTPU-v5p", "mi300x", "8 x H100", "h200"])
def test_devices_are_found_as_people_write_them(text):
    assert find_device(text).peak_flops_per_s > 1e14


@pytest.mark.parametrize(
    ("text", "words"),
    [("B9000", "write one of A100"), ("H1000", "did you mean H100"), ("0xH100", "0xH100"), ("-5", "-5"), ("", "''")],
)
def test_unknown_hardware_is_refused(text, words):
    with pytest.raises(PlanError, match=words):
        find_device(text)


@pytest.mark.parametrize(
    ("budget", "device", "price", "words"),
    [
        ("5m", None, None, "--hardware"),
        ("$5", None, 1.0, "--hardware"),
        ("$5", "H100", None, "--price"),
        ("8 GPU-hours", None, None, "names no device"),
        ("8 A100-hours", "H100", None, "different devices"),
        ("8 potato-hours", None, None, "potato"),
    ],
)
def test_time_and_money_need_a_machine_and_a_price(budget, device, price, words):
    with pytest.raises(PlanError, match=words):
        budget_in_flops(parse_budget(budget), None if device is None else find_device(device), price)


def test_a_price_below_nothing_is_refused():
    with pytest.raises(PlanError, match="price=-1"):
        add_bill(make_plan(Goal(flops=1e20), LAW), find_device("H100"), -1.0)
