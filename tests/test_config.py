"""The options of a build: the meaning of each form, and the errors of one line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lrfc import factorization
from lrfc.config import units
from lrfc.config.build import KNOWN_METHODS, METHODS, Budget, BuildConfig, frontier, parse
from lrfc.errors import UsageError


@pytest.mark.parametrize(
    ("option", "text", "original", "limit"),
    [
        ("max_macs", "50%", 1000, 500), ("max_macs", " 12.5 % ", 1000, 125),
        ("max_macs", "20M", 1, 20e6), ("max_macs", "1.5g", 1, 1.5e9),
        ("max_macs", "3000", 1, 3000), ("max_macs", 3000, 1, 3000),
        ("max_params", "100k", 1, 100e3), ("max_params", "100%", 77, 77),
        ("max_macs", "1e6", 1, 1e6), ("max_macs", np.int64(5000), 1, 5000),
        ("max_params", np.float32(20e6), 1, 20e6), ("max_macs", ".5M", 1, 5e5),
        ("max_ram", "64KiB", 1, 65536), ("max_size", "64 kb", 1, 64e3),
        ("max_size", "1.5MB", 1, 1.5e6), ("max_size", "2mib", 1, 2**21),
        ("max_size", "900B", 1, 900), ("max_latency", "1.5s", 1, 1500),
        ("max_latency", "3µs", 1, 0.003), ("max_latency", "3\u03bcs", 1, 0.003),
    ],
)  # fmt: skip
def test_budget_forms(option: str, text: object, original: float, limit: float) -> None:
    assert getattr(parse(**{option: text}), option).limit(original) == limit


@pytest.mark.parametrize(
    ("option", "given", "shown"),
    [
        ("max_ram", "200KiB", "200KiB"), ("max_latency", " 12 ms ", "12ms"),
        ("max_size", "50%", "50%"), ("max_macs", "20M", "20M"), ("max_macs", 20e6, "20000000"),
        ("max_ram", {"value": 0.5, "relative": True}, "50%"),
        ("max_ram", {"value": 2048, "relative": False}, "2048"),
    ],
)  # fmt: skip
def test_a_budget_is_shown_as_it_was_given(option: str, given: object, shown: str) -> None:
    budget = getattr(parse(**{option: given}), option)
    assert str(budget) == shown
    assert getattr(parse(**{option: budget.model_dump(mode="json")}), option) == budget


def test_no_budget_is_none_and_a_budget_stays_one() -> None:
    assert parse().max_macs is None
    assert parse(max_macs=None).max_macs is None
    budget = Budget(value=0.25, relative=True)
    assert parse(max_macs=budget).max_macs == budget


@given(st.floats(0.01, 100))
def test_percentages_round_trip(percent: float) -> None:
    text = f"{percent:.4g}%"
    budget = parse(max_macs=text).max_macs
    assert budget is not None
    assert float(str(budget).removesuffix("%")) == pytest.approx(
        float(text.removesuffix("%")), rel=1e-3
    )
    assert budget.limit(1000) <= 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_macs": "0%"},
            (
                "--max-macs: 0% is out of range: a percentage of the original is above 0% and"
                " at most 100%"
            ),
        ),
        (
            {"max_macs": "400%"},
            (
                "--max-macs: 400% is out of range: a percentage of the original is above 0% and"
                " at most 100%"
            ),
        ),
        ({"max_params": "0k"}, "--max-params: 0k is out of range: a budget is above 0"),
        (
            {"max_macs": "half"},
            (
                "--max-macs: 'half' is not a macs budget: write 50% (of the original's MACs) or an"
                " amount in k, M, G, such as 200M"
            ),
        ),
        ({"max_params": "3g"}, "--max-params: '3g' is not a params budget"),
        ({"max_macs": "-50%"}, "--max-macs: -50% is out of range"),
        ({"max_macs": -5000}, "--max-macs: -5000 is out of range: a budget is above 0"),
        (
            {"max_macs": "50"},
            "--max-macs: 50 has no unit: write 50% (of the original's MACs) or 50M",
        ),
        (
            {"max_macs": 0.5},
            "--max-macs: 0.5 has no unit: write 50% (of the original's MACs) or 0.5M",
        ),
        (
            {"max_macs": "0.5"},
            "--max-macs: 0.5 has no unit: write 50% (of the original's MACs) or 0.5M",
        ),
        ({"max_macs": np.float64(0.25)}, "--max-macs: 0.25 has no unit: write 25%"),
        ({"max_macs": 300}, "--max-macs: 300 has no unit: write 300M"),
        ({"max_macs": "1234.5"}, "--max-macs: 1234.5 has no unit: write 1234.5M"),
        (
            {"max_params": 50},
            "--max-params: 50 has no unit: write 50% (of the original's parameters) or 50k",
        ),
        ({"max_size": "200"}, "--max-size: 200 has no unit: write 200KiB"),
        (
            {"max_size": "200K"},
            (
                "--max-size: '200K' is not a size budget: write 50% (of the original's file) or an"
                " amount in B, kB, MB, KiB, MiB"
            ),
        ),
        ({"max_latency": 5000}, "--max-latency: 5000 has no unit: write 5000ms"),
        ({"max_latency": "12m"}, "--max-latency: '12m' is not a latency budget"),
        ({"max_macs": float("nan")}, "--max-macs: 'nan' is not a macs budget"),
        ({"max_macs": float("inf")}, "--max-macs: 'inf' is not a macs budget"),
        ({"max_macs": "1e400M"}, "--max-macs: 1e400M is out of range"),
        (
            {"max_macs": "9" * 5000},
            "9… is out of range: a budget is above 0".replace("9…", "9" * 30),
        ),
        ({"max_macs": True}, "--max-macs: 'True' is not a macs budget"),
        (
            {"max_drop": "1%"},
            "--max-drop: 1% may be percentage points or a share of the score: write 1pp",
        ),
        (
            {"max_drop": "0.01"},
            "--max-drop: 0.01 has no unit: write 1pp or 0.01pp (percentage points)",
        ),
        (
            {"max_drop": 0.01},
            "--max-drop: 0.01 has no unit: write 1pp or 0.01pp (percentage points)",
        ),
        ({"max_drop": 1}, "--max-drop: 1 has no unit: write 1pp (percentage points)"),
        (
            {"max_drop": "half"},
            (
                "--max-drop: 'half' is not an accuracy drop: give percentage points, such as 1pp,"
                " or 1pp@95% to require it with 95% confidence"
            ),
        ),
        ({"max_drop": "1pp@95"}, "--max-drop: the confidence of 1pp@95 has no unit: write 1pp@95%"),
        (
            {"max_drop": "1pp@0.95"},
            "--max-drop: the confidence of 1pp@0.95 has no unit: write 1pp@95%",
        ),
        (
            {"max_drop": "0pp"},
            "--max-drop: 0pp is out of range: a drop is above 0pp and at most 100pp",
        ),
        ({"max_drop": "-1pp"}, "--max-drop: -1pp is out of range"),
        ({"max_drop": "101pp"}, "--max-drop: 101pp is out of range"),
        ({"max_drop": float("nan")}, "--max-drop: 'nan' is not an accuracy drop"),
        ({"time_budget": "10"}, "--time-budget: 10 has no unit: write 10s or 10m"),
        ({"time_budget": float("inf")}, "--time-budget: 'inf' is not a time"),
        ({"time_budget": "0s"}, "--time-budget: 0s is out of range"),
        (
            {"metric": "acuracy"},
            (
                "--metric: unknown metric 'acuracy': did you mean 'accuracy'?; known are accuracy,"
                " miou"
            ),
        ),
        (
            {"objective": "latncy"},
            "--objective: 'latncy' is not known: did you mean 'latency'?; choose latency, cycles",
        ),
        (
            {"methods": ("tuker2",)},
            "--methods: unknown method tuker2: did you mean 'tucker2'?; known are",
        ),
        ({"keep": ("",)}, "--keep: '' names no layer; give a name or a glob"),
        ({"threads": 100_000}, "--threads: 100000 is out of range: at most 1,024"),
        ({"seed": 2**40}, "--seed: 1099511627776 is out of range: at most 4,294,967,295"),
        ({"epochs": 10**30}, "--epochs: "),
        ({"methods": ("svd", "magic")}, "unknown method magic; known are "),
        ({"methods": ()}, "unknown method (none)"),
        ({"epochs": -1}, "--epochs:"),
        ({"seed": -1}, "--seed:"),
        ({"threads": 0}, "--threads:"),
        (
            {"targets": ("tflit",)},
            "--target: 'tflit' is not known: did you mean 'tflite'?; choose tflite or onnx",
        ),
        ({"precision": "int4"}, "--precision: 'int4' is not known: did you mean 'int8'?"),
        ({"max_mac": "50%"}, "unknown option 'max_mac': did you mean 'max_macs'?"),
        ({"dat": "digits"}, "unknown option 'dat': did you mean 'data'?"),
        ({"zzzzz": 1}, "unknown option 'zzzzz'; known are targets, devices"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parse(**options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("given_as", "share"), [("1pp", 0.01), ("0.5PP", 0.005), (" 2 pp ", 0.02), ("1e-1pp", 0.001)]
)
def test_drop_is_in_percentage_points(given_as: object, share: float) -> None:
    assert parse(max_drop=given_as).max_drop.value == pytest.approx(share)


def test_a_drop_may_have_to_be_sure() -> None:
    drop = parse(max_drop="1pp@95%").max_drop
    assert (drop.value, drop.confidence, str(drop)) == (0.01, 0.95, "1pp@95%")
    assert parse(max_drop="0.5pp").max_drop.confidence is None
    with pytest.raises(UsageError, match="--max-drop"):
        parse(max_drop="1pp@40%")


def test_defaults() -> None:
    config = parse()
    assert (config.targets, config.devices, config.precision, config.methods, config.budgets) == (
        (),
        (),
        None,
        METHODS,
        {},
    )
    assert config.max_drop is None
    assert parse(out="somewhere").out == Path("somewhere")


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        BuildConfig().seed = 3


def test_every_factorization_can_be_asked_for():
    assert set(KNOWN_METHODS) == set(factorization.METHODS)
    assert set(METHODS) <= set(KNOWN_METHODS)


def test_the_manual_says_what_is_taken_and_what_is_not() -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "budgets.md").read_text(
        encoding="utf-8"
    )
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.startswith("| `--")
    ]
    assert {row[0].strip("`").removeprefix("--max-") for row in rows} == {
        *units.QUANTITIES,
        "drop",
        "--time-budget",
    }
    for flag, _, named, accepted, refused in rows:
        option = flag.strip("`").removeprefix("--").replace("-", "_")
        for text in re.findall("`([^`]+)`", accepted):
            assert getattr(parse(**{option: text}), option) is not None
        for text in re.findall("`([^`]+)`", refused):
            with pytest.raises(UsageError):
                parse(**{option: text})
        quantity = option.removeprefix("max_")
        if quantity in units.QUANTITIES:
            assert named.split(", ") == list(units.QUANTITIES[quantity].units)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (("ram", "macs", "ram"), "drawn over 'ram' once"),
        (("watts",), "cannot be drawn over 'watts'"),
        ((), "choose from"),
    ],
)
def test_a_front_over_each_quantity_once(over: tuple[str, ...], message: str) -> None:
    frontier(("macs", "ram"))
    with pytest.raises(UsageError, match=message):
        frontier(over)
