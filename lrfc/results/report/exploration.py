"""explore.html, the page of an exploration: the plans of each method by memory and MACs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lrfc.results import candidates
from lrfc.results.exploration import SHARES, Survey
from lrfc.results.folder import Reserved
from lrfc.results.report import memory
from lrfc.results.report.chart import chart, legend
from lrfc.search.candidates import Candidate, LayerSpace, pareto
from lrfc.text import percent, ranks


def write(survey: Survey, place: Reserved) -> Path:
    """Write the folder of an exploration: pareto.json, candidates.csv and explore.html."""
    with place.writing() as work:
        front = json.dumps(survey.to_json(), indent=2, allow_nan=False)
        (work / "pareto.json").write_text(front + "\n", encoding="utf-8")
        candidates.write(work, survey.design.spaces, {})
        (work / "explore.html").write_text(render(survey, SHARES), encoding="utf-8")
    return place.out


def render(survey: Survey, shares: Sequence[float]) -> str:
    """Return the page as text. ``shares``: the columns of its table, fractions of the MACs."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    names = list(survey.fronts)
    quality = {
        name: [
            (
                100 * p["macs"] / survey.whole["macs"],
                p["predicted_divergence"],
                f"{name}: {percent(p['macs'] / survey.whole['macs'])} of the MACs",
            )
            for p in points
        ]
        for name, points in survey.fronts.items()
    }
    spread = {
        name: [
            (p["macs"], p["params"], f"{name}: {p['macs']:,} MACs, {p['params']:,} parameters")
            for p in points
        ]
        for name, points in survey.fronts.items()
    }
    methods = _methods(survey.design.spaces)
    layers = [_layer(space, methods) for space in survey.design.spaces]
    return environment.get_template("exploration.html.j2").render(
        survey=survey,
        shares=shares,
        rows=survey.table(),
        ram_front=memory.front(survey.by_ram),
        quality=chart(
            quality,
            "Predicted divergence against MACs kept",
            "MACs kept, %",
            "predicted divergence",
            lines=True,
            log_y=True,
        ),
        spread=chart(spread, "Parameters against MACs", "MACs", "parameters", lines=True),
        legend=legend(names),
        layer_legend=legend(methods),
        layers=layers,
    )


def _methods(spaces: Sequence[LayerSpace]) -> list[str]:
    return list(dict.fromkeys(c.method for s in spaces for c in s.candidates if c.method))


def _layer(space: LayerSpace, names: Sequence[str]) -> tuple[str, str, str, str]:
    """The name, kind, chart and caption of a layer."""
    undominated = {id(c) for c in pareto(space.candidates)}
    best = [c for c in space.candidates if id(c) in undominated and c.method]

    def point(c: Candidate) -> tuple[float, float, str]:
        return (
            c.macs,
            c.params,
            (
                f"{c.method} {ranks(c.ranks)}: {c.macs:,} MACs, {c.params:,} parameters, similarity"
                f" {1 - c.error:.3f}"
            ),
        )

    series = {name: [point(c) for c in best if c.method == name] for name in names}
    figure = chart(
        series,
        f"{space.op.name}: parameters against MACs",
        "MACs",
        "parameters",
        size=(320, 220),
        dot=2.5,
    )
    caption = f"{len(space.candidates)} candidates, {len(best)} of them undominated"
    return space.op.name, space.op.kind, figure, caption
