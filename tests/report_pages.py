"""Helpers: manifests, their pages, and a reader of pages."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from lrfc.config.build import BuildConfig
from lrfc.metrics.outcome import Kept, Part, Speedup
from lrfc.results.candidates import Row
from lrfc.results.manifest import (
    Accuracy,
    Attempt,
    Figures,
    File,
    Filters,
    FineTuning,
    Input,
    Kernels,
    Latency,
    Layer,
    Manifest,
    Parity,
    Round,
    Search,
)
from lrfc.results.memory_plan import MemoryPlan, MemoryPlans, Place, Region, Step
from lrfc.results.op_costs import OpCost, OpProfile
from lrfc.results.report import page as pages
from lrfc.results.report.page import Content
from lrfc.results.time_profile import Entry


def ratio_of(median: float, low: float, high: float) -> Speedup:
    return Speedup(median=median, low=low, high=high)


FASTER = ratio_of(1.8, 1.7, 1.9)


POINTS: list[dict[str, Any]] = [
    {"macs": 500, "params": 60, "predicted_divergence": 0.4},
    {"macs": 1000, "params": 100, "predicted_divergence": 0.002},
]


def made(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "input": Input(path="models/digits.keras", sha256="ab" * 32),
        "config": BuildConfig(max_macs="50%", seed=7).model_dump(mode="json"),
        "seed": 7,
        "versions": {"python": "3.11.7", "keras": "3.15.1", "ethos-u-vela": None},
        "target": "tflite",
        "device": "local",
        "layers": (
            Layer(
                name="conv1",
                kind="conv2d",
                method="tucker2",
                rank=(4, 8),
                params_before=100,
                params_after=40,
                macs_before=1000,
                macs_after=400,
                similarity=0.9876,
            ),
            Layer(
                name="head",
                kind="dense",
                params_before=20,
                params_after=20,
                macs_before=20,
                macs_after=20,
                reason="no rank pays",
            ),
        ),
        "before": Figures(
            params=120,
            macs=1020,
            file_bytes=4096,
            arena_bytes=2048,
            accuracy=0.98,
            latency_ms=Latency(p50=2.0, p90=3.0, n=200, threads=1),
            peak_rss_bytes=50 * 2**20,
        ),
        "after": Figures(
            params=60,
            macs=420,
            file_bytes=2048,
            arena_bytes=1024,
            accuracy=0.97,
            latency_ms=Latency(p50=1.0, p90=1.5, n=180, threads=1),
            peak_rss_bytes=40 * 2**20,
        ),
        "accuracy": Accuracy(before=0.98, factorized=0.61, recalibrated=0.83, artifact=0.97),
        "parity": Parity(max_abs_diff=1.5e-6, samples=64),
        "artifacts": (File(path="digits.tflite", sha256="cd" * 32, bytes=2048, format="tflite"),),
    }
    return Manifest(**fields | changes)


def render(
    manifest: Manifest,
    ratio: Speedup | None,
    points: list[dict[str, Any]],
    problem: str | None,
    **content: Any,
) -> str:
    return pages.render(
        Content(
            manifest.model_copy(update={"speedup": ratio, "problem": problem}), points, **content
        )
    )


def op(
    name: str,
    layer: str,
    live: int,
    ms: float | None,
    kernel: tuple[int, ...] | None = None,
    weight_bytes: int = 0,
) -> OpCost:
    return OpCost(
        name=name,
        layer=layer,
        kind="Conv2D",
        kernel=kernel,
        output=(8, 8, 4),
        params=0,
        macs=0,
        weight_bytes=weight_bytes,
        live_bytes=live,
        predicted_ms=ms,
    )


STEPS = tuple(
    Step(operator=operator, layer=layer)
    for operator, layer in (
        ("CONV_2D", "conv1"),
        ("MAX_POOL_2D", "pool"),
        ("FULLY_CONNECTED", "head"),
    )
)


PLANS = MemoryPlans(
    runtime="tflm",
    before=MemoryPlan(
        steps=STEPS,
        places=(
            Place(name="image", bytes=1024, first=0, last=0, planned=2048, own=2048),
            Place(name="conv1", bytes=2048, first=0, last=1, planned=0, own=0),
            Place(name="pool", bytes=512, first=1, last=2, planned=2048, own=2048),
            Place(name="head", bytes=16, first=2, last=2, planned=0, own=0),
        ),
    ),
    after=MemoryPlan(
        steps=(STEPS[0], STEPS[0], Step(operator="CONCATENATION", layer="conv1"), *STEPS[1:]),
        places=(
            Place(name="image", bytes=1024, first=0, last=1, planned=1024, own=2048),
            Place(name="conv1, rows 0 to 3", bytes=512, first=0, last=2, planned=0, own=3072),
            Place(name="conv1, rows 4 to 7", bytes=512, first=1, last=2, planned=512, own=1536),
            Place(name="conv1", bytes=1024, first=2, last=3, planned=1024, own=0),
            Place(name="pool", bytes=512, first=3, last=4, planned=0, own=1024),
            Place(name="head", bytes=16, first=4, last=4, planned=512, own=0),
        ),
        regions=(Region(first=0, last=2, start="conv1", end="conv1", strips=2),),
    ),
)


BY_RAM: list[dict[str, Any]] = [
    {"macs": 500, "params": 60, "predicted_divergence": 0.4, "ram": 1536, "tail": 512},
    {"macs": 900, "params": 90, "predicted_divergence": 0.02, "ram": 2048, "tail": 600},
    {"macs": 500, "params": 60, "predicted_divergence": 0.4, "ram": 1536, "tail": 512},
]


for _point, _share in zip(BY_RAM, (1.0, 1.0, 0.5), strict=True):
    _point |= {"share": _share, "of": "latency", "latency": _point["macs"] / 500}


OPS = OpProfile(
    overhead_ms=0.1,
    before=(
        op("conv1", "conv1", 2048, 1.0, (3, 3, 4, 8), 400),
        op("pool", "pool", 1024, 0.5),
        op("head", "head", 100, 0.4, (8, 2), 80),
    ),
    after=(
        op("conv1__in", "conv1", 3072, 0.2, (1, 1, 4, 2), 40),
        op("conv1", "conv1", 2048, 0.3, (3, 3, 2, 8), 120),
        op("pool", "pool", 1024, 0.5),
        op("head", "head", 100, 0.4, (8, 2), 80),
    ),
)


CANDIDATES = (
    Row("conv1", None, "", 100, 1000, 1.0, 0.0, 1.0, False, False),
    Row("conv1", "svd", "2", 20, 200, 0.6, 0.5, 0.4, False, False),
    Row("conv1", "svd", "4", 40, 400, 0.9, 0.1, 1.2, False, True),
    Row("conv1", "tucker2", "2x2", 30, 300, 0.5, 0.6, 0.5, True, False),
    Row("head", None, "", 20, 20, 1.0, 0.0, 0.4, False, True),
)


VOID = {"meta", "link", "br", "input"}


class Page(HTMLParser):
    """The rows of each table by its section's heading id, the visible text, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        assert self._open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:  # those without an end
            self._open.append(tag)
        if tag == "dd":
            self.text += " "
        if tag == "section":
            self._section = dict(attrs)["aria-labelledby"] or ""
        if tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        if tag in ("th", "td"):
            self.tables[self._section][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "title", "script"} & set(self._open):
            return
        self.text += data
        if {"th", "td"} & set(self._open) and "small" not in self._open:
            self.tables[self._section][-1][-1] += data


#: The layers of ``made`` when filters could be cut, and were.
PRUNED: dict[str, Any] = {
    "layers": (
        made().layers[0].model_copy(update={"filters_before": 64, "filters_after": 16}),
        made()
        .layers[1]
        .model_copy(
            update={
                "filters_before": 2,
                "filters_after": 2,
                "filters_reason": "its filters are the model's output 'head'",
            }
        ),
    ),
    "filters": (
        Filters(name="conv1", layers=("conv1", "conv2"), units=2, kept=(1,), impact=0.0125),
    ),
}


def entry(name: str, seconds: float, *parts: Entry, **fields: Any) -> Entry:
    """An entry of the time profile."""
    defaults: dict[str, Any] = {
        "kind": "stage",
        "parallel": False,
        "verdict": None,
        "user_seconds": seconds / 2,
        "system_seconds": seconds / 4,
        "children_seconds": 0.0,
        "page_faults": 1_000 * int(seconds),
        "peak_growth_bytes": 2_048,
    }
    return Entry(name=name, seconds=seconds, parts=parts, **defaults | fields)


PROFILE = entry(
    "build",
    20,
    entry(
        "ExploreLayers",
        5,
        entry("conv1", 4, kind="layer", parallel=True, peak_growth_bytes=None),
        entry("head", 25, kind="layer", parallel=True),
    ),
    entry(
        "search",
        10,
        entry("half <b>", 8, entry("Refit", 6), kind="plan", verdict="drop 0.10 pp"),
    ),
)


def full() -> str:
    """A page with everything on it."""
    return drawn(full_manifest())


def full_manifest() -> Manifest:
    """The manifest of that page."""
    kept = Kept(
        allowed=0.01, drop=0.005, low=-0.001, high=0.011, confidence=0.95, samples=400, met=True
    )
    attempts = (
        Attempt(allowed_divergence=0.1, kept=kept, accuracy=0.9, latency_ms=0.8, ram_bytes=1536),
        Attempt(allowed_divergence=0.05, kept=kept),
    )
    manifest = made(
        search=Search(
            candidates=4,
            seconds=1.0,
            rounds=(
                Round(predicted_ms=1.0, measured_ms=1.3),
                Round(predicted_ms=1.2, measured_ms=1.25),
            ),
            attempts=attempts,
        ),
        finetune=FineTuning(
            losses=(None, 0.5, 0.3),
            scores=(0.9, 0.95, None),
            best=1,
            learning_rate=1e-3,
            steps=20,
            seconds=3.0,
        ),
        accuracy=Accuracy(
            metric="accuracy",
            before=0.98,
            artifact=0.97,
            kept=kept,
            kernels=Kernels(reference=0.965, optimised=0.972, samples=1_200, counted=True),
        ),
        profile=PROFILE,
    )
    return manifest.model_copy(update=PRUNED)


def drawn(manifest: Manifest) -> str:
    """The page with everything on it, of a manifest."""
    by_latency = [{**point, "latency": point["macs"] / 500} for point in POINTS]
    return render(
        manifest,
        FASTER,
        POINTS,
        None,
        by_latency=by_latency,
        by_ram=BY_RAM,
        candidates=CANDIDATES,
        ops=OPS.model_copy(update={"memory": PLANS}),
    )


def rounded(*, counted: bool = True) -> Manifest:
    """A build of integers, whose original has one score in float and another as a file."""
    steps = [
        ("compression", -0.002),
        ("emission", 0.007),
        *([("kernels", 0.013)] if counted else []),
    ]
    kept = Kept(
        allowed=0.02,
        drop=0.018 if counted else 0.005,
        low=0.001,
        high=0.03,
        confidence=0.95,
        samples=1_000,
        met=True,
        margin=0.002 if counted else 0.015,
        parts=tuple(Part(step=step, drop=drop) for step, drop in steps),
    )
    kernels = Kernels(reference=0.371, optimised=0.384, samples=1_000, counted=counted)
    sides = [
        side.model_copy(update={"accuracy": score})
        for side, score in ((made().before, 0.405), (made().after, 0.384))
    ]
    scores = Accuracy(metric="accuracy", before=0.389, artifact=0.384, kept=kept, kernels=kernels)
    return made(before=sides[0], after=sides[1], accuracy=scores, config={"precision": "int8"})
