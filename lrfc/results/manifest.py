"""The record of a build, manifest.json: what went in, what came out, and every number on the way.

A value that was not measured is null.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from lrfc.config.build import BuildConfig
from lrfc.errors import UsageError
from lrfc.metrics.outcome import Count, Kept, Milliseconds, Number, Record, Sha256, Speedup, Verdict
from lrfc.metrics.source import COMPILED, ESTIMATED, MEASURED, Source
from lrfc.system import reader
from lrfc.text import ranks, score

SCHEMA = Path(__file__).with_name("manifest.schema.json")


class Input(Record):
    """The model that was compressed.

    ``preprocessing``: what was done to the samples before the model saw them, which whoever runs it
    has to do too.
    """

    path: str
    sha256: Sha256
    preprocessing: str | None = None


class Layer(Record):
    """What became of one layer.

    ``rank`` has a number for each free rank of the method; without a method, ``reason`` says why
    the layer was left alone.

    ``similarity``: of the feature maps before and after, 1 for equal ones. ``filters_before`` and
    ``filters_after``: channels of what the layer gives, null where it has none to cut, or nothing
    was to be cut; ``filters_reason`` says why none may go.
    """

    name: str
    kind: str
    method: str | None = None
    rank: tuple[int, ...] | None = None
    params_before: Count
    params_after: Count
    macs_before: Count
    macs_after: Count
    similarity: Number | None = None
    reason: str | None = None
    filters_before: Count | None = None
    filters_after: Count | None = None
    filters_reason: str | None = None

    @property
    def cut(self) -> bool:
        """Whether filters of it are gone."""
        return self.filters_after != self.filters_before


class Filters(Record):
    """A group of filters of which some were cut.

    ``layers`` make them; of so many ``units`` those with the indices ``kept`` are left; ``impact``
    is the predicted divergence of the outputs.
    """

    name: str
    layers: tuple[str, ...]
    units: Count
    kept: tuple[Count, ...]
    impact: Number | None = None


class Latency(Record):
    """Milliseconds of one inference: median and 90th percentile over ``n`` runs.

    ``source``: measured on the device, estimated from a cost profile, or compiled: computed by the
    device's compiler. Nothing was timed in the latter two: ``n`` is 1 and both figures are the
    same.
    """

    p50: Milliseconds
    p90: Milliseconds
    n: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    source: Source = MEASURED


class Figures(Record):
    """What an emitted file costs and is worth.

    ``arena_bytes`` is the planned activation memory; ``peak_rss_bytes`` was measured, of the
    process that ran the file; ``cycles``, ``sram_bytes`` and ``flash_bytes`` are those of an NPU,
    compiled (as ``Latency.source`` has it). ``accuracy`` is the score that ``Accuracy.metric``
    names.
    """

    params: Count
    macs: Count
    file_bytes: Count | None = None
    arena_bytes: Count | None = None
    accuracy: Number | None = None
    latency_ms: Latency | None = None
    peak_rss_bytes: Count | None = None
    cycles: Count | None = None
    sram_bytes: Count | None = None
    flash_bytes: Count | None = None


class Kernels(Record):
    """The score of an emitted file of integers by LiteRT's reference kernels, and by its optimised ones (XNNPACK), on the same ``samples`` out of the test set.

    ``counted``: the device rounds as the reference kernels do, so what they lose against the
    optimised ones is part of ``Accuracy.kept``.
    """

    reference: Number
    optimised: Number
    samples: Annotated[int, Field(ge=1)]
    counted: bool


class Accuracy(Record):
    """The score at each stage, on the same samples: of the original and of what became of it, in float, and of the emitted file (``artifact``).

    As factorized, with filters cut (``pruned``), with BatchNorms re-estimated, refitted and
    fine-tuned; null for a stage that had nothing to do. ``metric`` names the score; a share of 1
    where ``percent``, otherwise in units of its own, of which less may be better
    (``higher_is_better``).
    """

    metric: str | None = None
    percent: bool = True
    higher_is_better: bool = True
    before: Number | None = None
    factorized: Number | None = None
    pruned: Number | None = None
    recalibrated: Number | None = None
    refitted: Number | None = None
    finetuned: Number | None = None
    artifact: Number | None = None
    kept: Kept | None = None
    kernels: Kernels | None = None

    @model_validator(mode="after")
    def _shares(self) -> Accuracy:
        if self.percent and any(value > 1 for value in self.ladder().values()):
            raise ValueError("a share is at most 1")
        return self

    def ladder(self) -> dict[str, float]:
        """The stages that were measured, in their order."""
        rungs = (
            "before",
            "factorized",
            "pruned",
            "recalibrated",
            "refitted",
            "finetuned",
            "artifact",
        )
        return {rung: value for rung in rungs if (value := getattr(self, rung)) is not None}

    def shown(self, value: float) -> str:
        """A score as text."""
        return score(value, percent=self.percent)


class Round(Record):
    """One turn of the search: latency in milliseconds, predicted and measured.

    The same in cycles where the device counts those. ``source``: of what stands under ``measured``,
    where the device was not timed: estimated from the cost profile, or computed by the device's
    compiler; null from an older lrfc.
    """

    predicted_ms: Number | None = None
    measured_ms: Number | None = None
    predicted_cycles: Count | None = None
    measured_cycles: Count | None = None
    source: Source | None = None


class Attempt(Record):
    """A build that was held against the accuracy contract.

    The predicted divergence that it was allowed, what it kept, and what its file is worth.
    ``source``: of its latency.
    """

    allowed_divergence: Number | None
    kept: Kept | None
    accuracy: Number | None = None
    latency_ms: Number | None = None
    source: Source | None = None


class Search(Record):
    """How many candidates were evaluated, how many of them no other of the same layer beats, the seconds, and the turns of the measured loop.

    ``objective``: what was made small; ``allowed_divergence``: the predicted divergence of the
    outputs up to which, learnt from the accuracy that may be lost.
    """

    candidates: Count | None = None
    undominated: Count | None = None
    seconds: Number | None = None
    objective: str | None = None
    allowed_divergence: Number | None = None
    rounds: tuple[Round, ...] = ()
    attempts: tuple[Attempt, ...] = ()


class FloatOriginal(Record):
    """The original's file in fp32, beside a file of another precision, in the same run.

    What it takes, and how many times as fast as it the file that ships is. ``reason``: why that is
    not known, if so.
    """

    file_bytes: Count | None = None
    latency_ms: Latency | None = None
    speedup: Speedup | None = None
    reason: str | None = None


class FineTuning(Record):
    """The fine-tune: the mean training loss and the validation score of each epoch, the first entry before the first one; the weights kept are of ``best``.

    The score is ``Accuracy.metric`` where the data have labels, with its sign changed where less is
    better; otherwise minus the divergence from the original's outputs. ``stopped``: why before the
    last epoch, if so.
    """

    losses: tuple[Number | None, ...]
    scores: tuple[Number | None, ...]
    best: Count
    learning_rate: Number
    steps: Count
    seconds: Number
    stopped: str | None = None


class Parity(Record):
    """The largest difference between the outputs of the emitted file and of the model, and on how many samples."""

    max_abs_diff: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    samples: Annotated[int, Field(ge=1)]


class Scale(Record):
    """What the integers of an input or output stand for: value = ``scale`` · (integer - ``zero_point``)."""

    name: str
    scale: Number
    zero_point: int


class File(Record):
    """A file in the output folder; ``path`` is relative to it.

    ``scales``: of its integer inputs and outputs, in their order.
    """

    path: str
    sha256: Sha256
    bytes: Count
    format: str
    scales: tuple[Scale, ...] = ()


class Manifest(Record):
    """manifest.json. ``device`` and everything measured on it are null where nothing was measured.

    ``speedup``: of the compressed file over the original's of the same precision, also where it was
    not kept; ``float_original``: the one in fp32, null for a build in fp32 and from an older lrfc.
    ``problem``: why the build does not end well, if so. ``verdict``: what all of this amounts to,
    null from an older lrfc.
    """

    schema_version: Literal[1] = 1
    input: Input
    config: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str | None]
    #: Whether TensorFlow computed with oneDNN, which changes the last bits; null in manifests of
    #: before it was noted.
    onednn: bool | None = None
    target: str
    device: str | None = None
    layers: tuple[Layer, ...]
    filters: tuple[Filters, ...] = ()
    before: Figures
    after: Figures
    accuracy: Accuracy = Accuracy()
    search: Search = Search()
    finetune: FineTuning | None = None
    speedup: Speedup | None = None
    float_original: FloatOriginal | None = None
    verdict: Verdict | None = None
    problem: str | None = None
    parity: Parity | None = None
    artifacts: tuple[File, ...]

    @model_validator(mode="before")
    @classmethod
    def _older(cls, data: Any) -> Any:
        """A manifest of an older lrfc said of a latency only whether it was estimated."""
        if not isinstance(data, Mapping):
            return data
        fields = dict(data)
        for side in ("before", "after"):
            figures = fields.get(side)
            latency = figures.get("latency_ms") if isinstance(figures, Mapping) else None
            if (
                isinstance(figures, Mapping)
                and isinstance(latency, Mapping)
                and "estimated" in latency
            ):
                timed = {key: value for key, value in latency.items() if key != "estimated"}
                computed = ESTIMATED if figures.get("cycles") is None else COMPILED
                source = computed if latency["estimated"] else MEASURED
                fields[side] = {**figures, "latency_ms": {**timed, "source": source}}
                ratio = fields.get("speedup")
                if isinstance(ratio, Mapping) and source != MEASURED:
                    # Its interval was that of one figure: nothing.
                    fields["speedup"] = {"median": ratio.get("median"), "source": source}
        return fields

    @property
    def original_file(self) -> float | None:
        """The score of the original's file, where it is another than that of the original in float; ``Accuracy.kept`` is counted from the latter."""
        file, scores = self.before.accuracy, self.accuracy
        return (
            None
            if file is None
            or scores.before is None
            or scores.shown(file) == scores.shown(scores.before)
            else file
        )

    def write(self, folder: Path) -> Path:
        """Write manifest.json into the folder."""
        path = folder / "manifest.json"
        path.write_text(
            json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
            + "\n",
            encoding="utf-8",
        )
        return path

    def write_layers(self, folder: Path) -> Path:
        """Write layers.csv into the folder: one line a layer, the fields of ``Layer``; ranks as 4x8, empty where there is no value."""
        path = folder / "layers.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(Layer.model_fields))
            writer.writeheader()
            for layer in self.layers:
                writer.writerow(layer.model_dump() | {"rank": ranks(layer.rank)})
        return path

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of an output folder; UsageError when there is none or it is not one of this version."""
        if reader.kind(folder / "manifest.json") is None:
            raise UsageError(
                f"'{reader.shown(folder)}' is no output folder of lrfc: it has no readable"
                " manifest.json"
            )
        return Manifest.read_file(folder / "manifest.json")

    @staticmethod
    def read_file(path: Path) -> Manifest:
        """A manifest.json, whatever its name; UsageError when it cannot be read or is not one of this version."""
        where = f"'{reader.shown(path)}'"
        try:
            found = Manifest.model_validate(
                reader.plain(reader.json_object(reader.contents(path), where))
            )
            BuildConfig.model_validate(
                {
                    name: value
                    for name, value in found.config.items()
                    if name in BuildConfig.model_fields
                }
            )
        except ValidationError as error:
            raise UsageError(
                f"{where} is not a manifest of schema version 1: {reader.refused(error)}"
            ) from error
        return found


def schema() -> dict[str, Any]:
    """The JSON Schema of manifest.json, as shipped in manifest.schema.json (``python -m lrfc.results.manifest`` writes that file)."""
    return (
        {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        | Manifest.model_json_schema(mode="serialization")
        | {"title": "lrfc manifest.json"}
    )


def schema_text() -> str:
    """The content of manifest.schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
