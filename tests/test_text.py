"""Quantities as text."""

from __future__ import annotations

import pytest

from lrfc import text
from lrfc.text import NONE


def test_counts_and_numbers() -> None:
    assert [text.count(value) for value in (None, 0, 1_234_567)] == [NONE, "0", "1,234,567"]
    assert [text.decimal(value) for value in (None, 0.0, -0.123456, 12_345.6, -1e-7)] == [
        NONE,
        "0",
        "−0.1235",
        "12,346",
        "−1e-07",
    ]
    assert [text.milliseconds(value) for value in (None, 1.23456, 1e-4)] == [
        NONE,
        "1.235 ms",
        "0.0001 ms",
    ]


@pytest.mark.parametrize(
    ("value", "short", "exact"),
    [
        (None, NONE, NONE),
        (0, "0 B", "0 bytes"),
        (1023, "1023 B", "1,023 bytes"),
        (1536, "1.5 KiB", "1.5 KiB (1,536 bytes)"),
        (3 << 20, "3 MiB", "3 MiB (3,145,728 bytes)"),
        (5 << 40, "5120 GiB", "5120 GiB (5,497,558,138,880 bytes)"),
    ],
)
def test_bytes(value: int | None, short: str, exact: str) -> None:
    assert (text.size(value), text.exact_size(value)) == (short, exact)


def test_shares_and_factors() -> None:
    assert [text.percent(value) for value in (None, 0.0, -0.25)] == [NONE, "0 %", "−25.00 %"]
    assert text.percent(0.75, 0) == "75 %"
    assert [text.confidence(level) for level in (0.95, 0.995)] == ["95 %", "99.5 %"]
    pairs = ((100, 40), (40, 100), (0, 1), (None, 1), (2, 2))
    assert [text.relative_change(*pair) for pair in pairs] == ["−60.00 %", "+150.00 %", "", "", ""]
    assert [text.factor(value) for value in (None, 1.8)] == [NONE, "×1.80"]


def test_scores_and_drops() -> None:
    assert [text.score(0.9125, percent=share) for share in (True, False)] == ["91.25 %", "0.9125"]
    assert text.points(-0.004, None) == "−0.40 pp"
    assert text.points(0.02, "% of the variance") == "2.00 % of the variance"


@pytest.mark.parametrize(("ranks", "written"), [((), ""), ((8,), "8"), ((4, 8), "4x8")])
def test_ranks_are_read_as_they_are_written(ranks: tuple[int, ...], written: str) -> None:
    assert text.ranks(ranks) == written
    assert text.parse_ranks(written) == ranks


@pytest.mark.parametrize("wrong", ["x", "4x", "4×8", "-4", "4 x 8", "(4, 8)", "٤"])
def test_other_text_is_not_a_rank(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a rank"):
        text.parse_ranks(wrong)


def test_shapes() -> None:
    assert text.shape((None, 32, 3)) == "?×32×3"
