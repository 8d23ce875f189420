"""MkDocs hook: draw the figures of the documentation from benchmarks/*.csv, as in reports.

A page includes a figure with ``<!-- figure: NAME -->`` on a line of its own. NAME is a function
below, whose docstring is the title and the caption.
"""

from __future__ import annotations

import csv
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

from lrfc.results.report.chart import Series, chart, legend

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
#: As narrow as in a report: its text is read on a phone.
SIZE = (480, 300)
Points = dict[str, list[tuple[float, float, str]]]


def accuracy() -> str:
    """Accuracy against MACs.

    ResNet-20 on CIFAR-10, nothing trained, BatchNorm re-estimated: test accuracy against the MACs
    kept. *hybrid* mixes all methods, and the others use one method each. The ranks of *uniform* and
    *EVBMF* do not come from feature maps (selection_accuracy_resnet20_cifar10.csv).
    """
    shown = (
        "cp",
        "spatial_svd",
        "spatial_svd_w",
        "tucker2",
        "channel_svd",
        "spatial_svd uniform",
        "tucker2 by EVBMF",
        "hybrid",
    )
    found: Points = {name: [] for name in shown}
    for row in _rows("selection_accuracy_resnet20_cifar10.csv"):
        if row["selection"] in found:
            found[row["selection"]].append(
                (
                    float(row["macs_kept"]),
                    float(row["recalibrated"]),
                    f"{row['selection']}: {row['recalibrated']} %",
                )
            )
    return _drawn(found, "MACs kept, %", "accuracy, %", lines=True, from_zero=(False, False))


def ranking() -> str:
    """Accuracy against predicted divergence.

    60 random plans of ResNet-20: the divergence that lrfc predicts for a plan, and the accuracy of
    the plan with BatchNorm re-estimated (selection_ranking_resnet20_cifar10.csv).
    """
    rows = _rows("selection_ranking_resnet20_cifar10.csv")
    points = [
        (
            float(row["relative_l2 weighted"]),
            float(row["recalibrated"]),
            f"plan {row['plan']}: {row['recalibrated']} %",
        )
        for row in rows
    ]
    return _drawn({"plans": points}, "predicted divergence", "accuracy, %", from_zero=(True, False))


def statistics() -> str:
    """Error with and without statistics of the inputs.

    Mean relative error of a layer's output at 50 % of its MACs: truncated in the norm of the
    weights (x) and in the norm of the layer's inputs (y). Below the line, the statistics of the
    inputs help (factorizations.csv).
    """
    errors: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in _rows("factorizations.csv"):
        if row["budget"] == "0.5":
            errors[row["network"], row["method"]].append((float(row["free"]), float(row["aware"])))
    found: Points = {network: [] for network, _ in errors}
    for (network, method), pairs in errors.items():
        free, aware = (mean(values) for values in zip(*pairs, strict=True))
        found[network].append((free, aware, f"{method}: {free:.3f} to {aware:.3f}"))
    return _drawn(found, "error by the weights alone", "error with statistics", diagonal=True)


def prediction() -> str:
    """Measured against predicted latency.

    Latency of three networks and ten random factorizations of each: predicted before any
    measurement, and measured on one core (latency.csv).
    """
    found: Points = defaultdict(list)
    for row in _rows("latency.csv"):
        runtime = {"tflite": "LiteRT", "onnx": "onnxruntime"}[row["format"]]
        x, y = float(row["predicted_ms_before"]), float(row["measured_ms"])
        found[f"{row['network']}, {runtime}"].append(
            (x, y, f"predicted {x:.3g} ms, measured {y:.3g} ms")
        )
    return _drawn(found, "predicted, ms", "measured, ms", diagonal=True)


def macs_and_time() -> str:
    """Cycles against MACs.

    ResNet-20 in int8 on four Ethos-U at equal predicted divergence: cycles of the plan with the
    fewest MACs, and of the plan with the fewest cycles, relative to the original's (100 %). Plans
    with fewer MACs are often slower (npu_plans.csv; the cycles are Vela's, no hardware was timed).
    """
    found: Points = {"fewest MACs": [], "fewest cycles": []}
    whole = {row["device"]: row for row in _rows("npu_predict.csv") if row["plan"] == "original"}
    for row in _rows("npu_plans.csv"):
        for name, kind in (("fewest MACs", "macs"), ("fewest cycles", "latency")):
            x = 100 * float(row[f"{kind}_macs"]) / float(whole[row["device"]]["macs"])
            y = 100 * float(row[f"{kind}_cycles"]) / float(row["original"])
            found[name].append(
                (x, y, f"{row['device']}: {x:.0f} % of the MACs, {y:.0f} % of the cycles")
            )
    return _drawn(found, "MACs kept, %", "cycles kept, %")


FIGURES: dict[str, Callable[[], str]] = {
    each.__name__: each for each in (accuracy, ranking, statistics, prediction, macs_and_time)
}


def placed(markdown: str) -> str:
    """Return a page with its figures; KeyError for an unknown one."""
    return re.sub(
        r"^<!-- figure: (\w+) -->$",
        lambda match: _figure(FIGURES[match[1]]),
        markdown,
        flags=re.MULTILINE,
    )


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Handle MkDocs' event: insert the figures into a page."""
    return placed(markdown)


def _figure(draw: Callable[[], str]) -> str:
    title, _, text = (inspect.getdoc(draw) or "").partition("\n\n")
    caption = re.sub(r"\*(\w+)\*", r"<em>\1</em>", escape(" ".join(text.split()), quote=False))
    return (
        f"<figure>{draw()}<figcaption><strong>{escape(title)}</strong>"
        f" {caption}</figcaption></figure>"
    )


def _drawn(
    found: Series, x_label: str, y_label: str, *, lines: bool | Collection[str] = False, **more: Any
) -> str:
    key = legend(list(found)) if len(found) > 1 else ""
    return (
        chart(
            found, f"{y_label} against {x_label}", x_label, y_label, lines=lines, size=SIZE, **more
        )
        + key
    )


def _rows(name: str) -> Sequence[dict[str, str]]:
    with (BENCHMARKS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
