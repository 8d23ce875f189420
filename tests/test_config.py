"""The options of a build: what each form means, and the one line that refuses a wrong one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lrfc import factorization
from lrfc.config import KNOWN_METHODS, METHODS, Budget, BuildConfig, parse
from lrfc.errors import UsageError


@pytest.mark.parametrize(
    ("option", "text", "original", "limit"),
    [
        ("max_macs", "50%", 1000, 500), ("max_macs", " 12.5 % ", 1000, 125), ("max_macs", "20M", 1, 20e6), ("max_macs", "1.5g", 1, 1.5e9),
        ("max_macs", "300", 1, 300), ("max_macs", 300, 1, 300), ("max_params", "100k", 1, 100e3), ("max_params", "100%", 77, 77),
    ],
)  # fmt: skip
def test_budget_forms(option: str, text: object, original: float, limit: float) -> None:
    assert getattr(parse(**{option: text}), option).limit(original) == limit


@pytest.mark.parametrize(
    ("option", "given", "shown"),
    [
        ("max_ram", "200KiB", "200KiB"), ("max_latency", " 12 ms ", "12ms"), ("max_size", "50%", "50%"), ("max_macs", "20M", "20M"),
        ("max_macs", 20e6, "20000000"), ("max_ram", {"value": 0.5, "relative": True}, "50%"), ("max_ram", {"value": 2048, "relative": False}, "2048"),
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
    assert float(str(budget).removesuffix("%")) == pytest.approx(float(text.removesuffix("%")), rel=1e-3)
    assert budget.limit(1000) <= 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_macs": "0%"}, "--max-macs: 0% is out of range: a percentage is what is kept of the original, above 0% and at most 100%"),
        ({"max_macs": "400%"}, "--max-macs: 400% is out of range: a percentage is what is kept of the original, above 0% and at most 100%"),
        ({"max_params": "0"}, "--max-params: 0 is out of range: a budget is above 0"),
        (
            {"max_macs": "half"},
            "--max-macs: 'half' is not a macs budget: give a percentage that is kept (50%) or an amount in plain numbers, k, m, g",
        ),
        ({"max_params": "3g"}, "--max-params: '3g' is not a params budget"),
        ({"max_macs": "-50%"}, "--max-macs: '-50%' is not a macs budget"),
        ({"max_drop": "1%"}, "--max-drop: '1%' is not an accuracy drop: give percentage points, such as 1pp, or 1pp@95% to be sure of it"),
        ({"max_drop": "0pp"}, "--max-drop:"),
        ({"max_drop": "101pp"}, "--max-drop:"),
        ({"methods": ("svd", "magic")}, "unknown method magic; known are "),
        ({"methods": ()}, "unknown method (none)"),
        ({"epochs": -1}, "--epochs:"),
        ({"seed": -1}, "--seed:"),
        ({"threads": 0}, "--threads:"),
        ({"targets": ("coreml",)}, "--targets:"),
        ({"precision": "int4"}, "--precision:"),
        ({"max_mac": "50%"}, "--max-mac:"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parse(**options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("given_as", "share"), [("1pp", 0.01), ("0.5", 0.005), (" 2 pp ", 0.02), (0.03, 0.03)])
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
    assert (config.targets, config.devices, config.precision, config.methods, config.budgets) == ((), (), None, METHODS, {})
    assert config.max_drop is None
    assert parse(out="somewhere").out == Path("somewhere")


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        BuildConfig().seed = 3


def test_every_factorization_can_be_asked_for():
    assert set(KNOWN_METHODS) == set(factorization.METHODS)
    assert set(METHODS) <= set(KNOWN_METHODS)
