"""Comparison of two builds or models: figures, layers, and limits on what may get worse."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from lrfc.config.formats import suffixes
from lrfc.errors import UsageError
from lrfc.metrics.source import COMPILED, MEASURED, Source
from lrfc.results.candidates import UNCHANGED
from lrfc.results.manifest import Layer as Built
from lrfc.results.manifest import Manifest
from lrfc.system.reader import kind
from lrfc.system.reader import shown as _shown
from lrfc.text import (
    NONE,
    count,
    decimal,
    exact_size,
    factor,
    like,
    milliseconds,
    percent,
    points,
    ranks,
)

#: Quantity of a limit → the field of ``Figures``; less is better in all of them.
COSTS = {
    "latency": "latency_ms",
    "size": "file_bytes",
    "macs": "macs",
    "params": "params",
    "ram": "ram_bytes",
    "cycles": "cycles",
    "sram": "sram_bytes",
    "flash": "flash_bytes",
}
#: Quantities that a limit can be set for. 'speedup' is relative to the original on the same
#: machine, so it is comparable from one machine to another.
QUANTITIES = ("accuracy", "speedup", *COSTS)
_BYTES = ("size", "ram", "sram", "flash")
#: The files that can be compared.
SUFFIXES = (".json", ".keras", ".h5", ".hdf5", *suffixes())
_ALIKE = {"arena": "ram", "parameters": "params"}
_LIMIT = re.compile(r"\s*(\w+)\s*=\s*(\d+(?:\.\d+)?)\s*(%|pp)\s*")


@dataclass(frozen=True)
class Layer:
    """One layer of a side. ``filters``: number left and number before; None without pruning."""

    kind: str
    method: str | None
    rank: str
    params: int
    macs: int
    similarity: float | None
    filters: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """Method, rank and filters left, as text."""
        factorized = [f"{self.method} {self.rank}"] if self.method else []
        pruned = [] if self.filters is None else ["{} of {} filters".format(*self.filters)]
        return ", ".join([*factorized, *pruned]) or UNCHANGED


@dataclass(frozen=True)
class Side:
    """A build or a model.

    ``figures``: by quantity, None for an unknown one. ``layers``: by name. ``manifest``: of a
    build, None for a model.
    """

    path: str
    figures: Mapping[str, float | None]
    layers: Mapping[str, Layer]
    manifest: Manifest | None = None

    def source(self, quantity: str) -> Source | None:
        """The source of a figure of the device; None for a counted or an unknown one."""
        if self.manifest is None or self.figures[quantity] is None:
            return None
        latency = self.manifest.after.latency_ms
        if quantity in ("cycles", "sram", "flash"):
            return COMPILED
        if quantity == "ram":
            return None if self.manifest.after.arena_total_bytes is None else MEASURED
        return (
            latency.source if latency is not None and quantity in ("latency", "speedup") else None
        )

    def shown(self, quantity: str) -> str:
        """A figure as text."""
        value = self.figures[quantity]
        if value is None:
            return NONE
        if quantity == "accuracy":
            return decimal(value) if self.manifest is None else self.manifest.accuracy.shown(value)
        show = {"latency": milliseconds, "speedup": factor}
        return show.get(quantity, exact_size if quantity in _BYTES else count)(value)


@dataclass(frozen=True)
class Limit:
    """The largest allowed loss: a fraction of the figure before or, with ``points``, of 1."""

    quantity: str
    value: float
    points: bool

    @property
    def amount(self) -> str:
        """The allowed loss, as it is written on the command line: 5%, 0.5pp."""
        return f"{100 * self.value:g}{'pp' if self.points else '%'}"

    def __str__(self) -> str:
        return f"{self.quantity}={self.amount}"


@dataclass(frozen=True)
class Verdict:
    """A limit, whether it holds (``ok``), and the reason or the margin (``detail``)."""

    limit: Limit
    ok: bool
    detail: str


@dataclass(frozen=True)
class Comparison:
    """Two sides, and the verdict on each limit."""

    before: Side
    after: Side
    verdicts: tuple[Verdict, ...]

    @property
    def changed(self) -> list[tuple[str, Layer | None, Layer | None]]:
        """The layers that differ: name, before, after; None on a side without such a layer."""
        names = dict.fromkeys([*self.before.layers, *self.after.layers])
        pairs = (
            (name, self.before.layers.get(name), self.after.layers.get(name)) for name in names
        )
        return [(name, old, new) for name, old, new in pairs if old != new]

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain values."""
        return {
            "before": self.before.path,
            "after": self.after.path,
            "figures": {
                q: {
                    "before": self.before.figures[q],
                    "after": self.after.figures[q],
                    "source": {"before": self.before.source(q), "after": self.after.source(q)},
                }
                for q in QUANTITIES
            },
            "layers": [
                {
                    "name": name,
                    "before": None if old is None else vars(old),
                    "after": None if new is None else vars(new),
                }
                for name, old, new in self.changed
            ],
            "limits": [
                {"limit": str(verdict.limit), "ok": verdict.ok, "detail": verdict.detail}
                for verdict in self.verdicts
            ],
            "ok": all(verdict.ok for verdict in self.verdicts),
        }

    def junit(self) -> str:
        """A JUnit report with a test case for each limit."""
        failed = sum(not verdict.ok for verdict in self.verdicts)
        root = ET.Element(
            "testsuites", tests=str(len(self.verdicts)), failures=str(failed), errors="0"
        )
        suite = ET.SubElement(
            root,
            "testsuite",
            name="lrfc compare",
            tests=str(len(self.verdicts)),
            failures=str(failed),
            errors="0",
            skipped="0",
        )
        for verdict in self.verdicts:
            case = ET.SubElement(
                suite, "testcase", classname="lrfc.compare", name=str(verdict.limit), time="0"
            )
            if verdict.ok:
                ET.SubElement(case, "system-out").text = verdict.detail
            else:
                ET.SubElement(
                    case, "failure", message=verdict.detail, type="regression"
                ).text = f"{self.before.path} -> {self.after.path}: {verdict.detail}"
        ET.indent(root)
        return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def compare(before: Path, after: Path, limits: Sequence[str] = ()) -> Comparison:
    """Compare two output folders, manifests or model files.

    ``limits``: such as latency=5%, accuracy=0.5pp. A limit on a figure that one side does not have
    does not hold. UsageError for any other kind of file.
    """
    parsed = [parse(limit) for limit in limits]
    for path in (before, after):  # both, before a model is loaded
        _require(path)
    old, new = side(before), side(after)
    return Comparison(old, new, tuple(_verdict(limit, old, new) for limit in parsed))


def parse(text: str) -> Limit:
    """Return the limit of a text such as latency=5% or accuracy=0.5pp."""
    match = _LIMIT.fullmatch(text)
    quantity = _ALIKE.get(match[1], match[1]) if match else ""
    if match is None or quantity not in QUANTITIES:
        near = "" if quantity in QUANTITIES else like(text.partition("=")[0].strip(), QUANTITIES)
        raise UsageError(
            f"--max-regress {_shown(text, 60)}: give a quantity and its largest loss, such"
            f" as latency=5% or accuracy=0.5pp; the quantities are {', '.join(QUANTITIES)}{near}"
        )
    if match[3] == "pp" and quantity != "accuracy":
        raise UsageError(
            f"--max-regress {text}: percentage points are for accuracy; give a percentage"
        )
    return Limit(quantity, float(match[2]) / 100, match[3] == "pp")


def side(path: Path) -> Side:
    """Load an output folder, a manifest.json, a Keras model, or an emitted file."""
    _require(path)
    if path.is_dir():
        return _build(Manifest.read(path), path)
    if path.suffix == ".json":
        return _build(Manifest.read_file(path), path)
    if path.suffix in (".keras", ".h5", ".hdf5"):
        return _model(path)
    return Side(str(path), dict.fromkeys(QUANTITIES) | {"size": path.stat().st_size}, {})


def _require(path: Path) -> None:
    """Raise UsageError unless the path's kind and name are those of a side."""
    entry = kind(path)
    if entry is None:
        raise UsageError(f"{_shown(path)}: no such file or folder")
    if entry not in ("a folder", "a file"):
        raise UsageError(f"{_shown(path)} is {entry}; give an output folder or a file")
    if entry == "a file" and path.suffix not in SUFFIXES:
        raise UsageError(
            f"{_shown(path)} is no output folder, manifest.json, {', '.join(SUFFIXES[1:-1])} or"
            f" {SUFFIXES[-1]} file"
        )
    if entry == "a folder" and not (path / "manifest.json").is_file():
        Manifest.read(path)  # raises, and names the folder


def _build(manifest: Manifest, path: Path) -> Side:
    figures: dict[str, float | None] = {
        quantity: getattr(manifest.after, name)
        for quantity, name in COSTS.items()
        if quantity != "latency"
    }
    latency = manifest.after.latency_ms
    figures |= {
        "latency": None if latency is None else latency.p50,
        "accuracy": manifest.after.accuracy,
        "speedup": (
            None
            if manifest.speedup is None
            else 1.0
            if manifest.after == manifest.before
            else manifest.speedup.median
        ),
    }
    return Side(
        str(path), figures, {layer.name: _layer(layer) for layer in manifest.layers}, manifest
    )


def _layer(built: Built) -> Layer:
    before, after = built.filters_before, built.filters_after
    filters = (after, before) if built.cut and after is not None and before is not None else None
    return Layer(
        built.kind,
        built.method,
        ranks(built.rank),
        built.params_after,
        built.macs_after,
        built.similarity,
        filters,
    )


def _model(path: Path) -> Side:
    from lrfc.ir.keras import io as keras_io
    from lrfc.ir.keras.load import load
    from lrfc.passes.profile import profile

    costs = profile(keras_io.from_keras(load(path)))
    figures: dict[str, float | None] = dict.fromkeys(QUANTITIES)
    figures |= {
        "size": path.stat().st_size,
        "macs": costs.macs,
        "params": costs.params,
        "ram": costs.arena_bytes,
    }
    layers = {
        row.name: Layer(row.kind, None, "", row.params, row.macs, None)
        for row in costs.rows
        if row.params
    }
    return Side(str(path), figures, layers)


# -- limits ----------------------------------------------------------------------------------------


def _verdict(limit: Limit, before: Side, after: Side) -> Verdict:
    old, new = before.figures[limit.quantity], after.figures[limit.quantity]
    missing = [side.path for side, value in ((before, old), (after, new)) if value is None]
    if old is None or new is None:
        return Verdict(
            limit,
            False,
            f"{limit.quantity} cannot be compared: {' and '.join(missing)}"
            f" {'have' if len(missing) > 1 else 'has'} no such figure",
        )
    unlike = _unlike(limit, before.manifest, after.manifest)
    if unlike is not None:
        return Verdict(limit, False, f"{limit.quantity} cannot be compared: {unlike}")
    less_is_better = limit.quantity in COSTS or (
        limit.quantity == "accuracy"
        and before.manifest is not None
        and not before.manifest.accuracy.higher_is_better
    )
    worse = (new - old) if less_is_better else (old - new)
    allowed = limit.value if limit.points else limit.value * abs(old)
    source = after.source(limit.quantity)
    reason = (
        f"{limit.quantity} {before.shown(limit.quantity)} -> {after.shown(limit.quantity)},"
        f" {_by(limit, worse, old)}{'' if source is None else f' ({source})'}"
    )
    return Verdict(limit, worse <= allowed * (1 + 1e-9), reason)


def _unlike(limit: Limit, old: Manifest | None, new: Manifest | None) -> str | None:
    """Why two figures cannot be compared; None where they can."""
    if old is None or new is None:
        return None
    if limit.quantity in ("latency", "cycles", "speedup"):
        kinds = [
            (
                _where(m),
                m.after.latency_ms and (m.after.latency_ms.threads, m.after.latency_ms.source),
            )
            for m in (old, new)
        ]
        if kinds[0] != kinds[1]:
            return " against ".join(
                place + (f" on {conditions[0]} threads, {conditions[1]}" if conditions else "")
                for place, conditions in kinds
            )
    if limit.quantity == "ram":
        totals = (m.after.arena_total_bytes for m in (old, new))
        found = ["planned" if total is None else "measured" for total in totals]
        return None if found[0] == found[1] else " against ".join(found)
    if limit.quantity == "accuracy":
        if old.accuracy.metric != new.accuracy.metric:
            return f"{old.accuracy.metric} against {new.accuracy.metric}"
        if limit.points and not old.accuracy.percent:
            return f"{old.accuracy.metric} is not a percentage; give a limit in %"
    return None


def _where(manifest: Manifest) -> str:
    """The device with its modes, and the file format."""
    modes = [
        str(manifest.config[name])
        for name in ("memory_mode", "system_config")
        if manifest.config.get(name) is not None
    ]
    return " ".join([str(manifest.device), *modes, manifest.target])


def _by(limit: Limit, worse: float, old: float) -> str:
    """The loss and the limit: 5.00 % worse, 2% allowed."""
    allowed = f"{limit.amount} allowed"
    if not worse:
        return f"unchanged, {allowed}"
    if limit.points:
        amount = points(abs(worse), "pp")
    else:
        amount = percent(abs(worse / old)) if old else decimal(abs(worse))
    return f"{amount} {'worse' if worse > 0 else 'better'}, {allowed}"
