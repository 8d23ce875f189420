"""manifest.json, the record of a build: its input, its options, its files and every figure.

A figure that was not measured is null.
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
from lrfc.results.time_profile import Entry
from lrfc.system import reader
from lrfc.text import ranks, score

SCHEMA = Path(__file__).with_name("manifest.schema.json")


class Input(Record):
    """The original model.

    ``preprocessing``: the preprocessing of the samples, which the emitted file needs as well.
    """

    path: str
    sha256: Sha256
    preprocessing: str | None = None


class Layer(Record):
    """One layer before and after.

    ``method`` is null for a layer that is not factorized; then ``reason`` says why. ``rank`` has a
    number for each rank of the method. ``similarity``: of the feature maps before and after, 1 for
    equal ones.

    ``filters_before``, ``filters_after``: the output channels of the layer; null in a build without
    pruning, and for a layer without filters. ``filters_reason``: why no filter may be removed.
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
        """Whether filters of the layer were removed."""
        return self.filters_after != self.filters_before


class Filters(Record):
    """A dependency group that was pruned.

    ``layers``: the layers whose filters it holds. ``units``: the number of units before. ``kept``:
    the indices of those that are left. ``impact``: the predicted divergence of the outputs.
    """

    name: str
    layers: tuple[str, ...]
    units: Count
    kept: tuple[Count, ...]
    impact: Number | None = None


class Latency(Record):
    """The latency of one inference in milliseconds: median and 90th percentile of ``n`` runs.

    ``source``: measured on the device, estimated from a cost profile, or compiled (computed by the
    device's compiler). Nothing is timed in the latter two: ``n`` is 1 and both figures are equal.
    """

    p50: Milliseconds
    p90: Milliseconds
    n: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    source: Source = MEASURED


class Figures(Record):
    """The costs and the score of an emitted file.

    ``arena_bytes``: the planned activation memory, of the file's own tensors where the format tells
    them, otherwise of the graph's. ``workspace_bytes``: of a .tflite file on a processor, what
    XNNPACK, LiteRT's library of kernels, takes for activations; computed by its own rule, and null
    where that is not known. Inputs and outputs are not in it. ``peak_rss_bytes``: measured, of the
    process that ran the file. ``cycles``, ``sram_bytes``, ``flash_bytes``: of an NPU, computed by
    its compiler. ``accuracy``: the score, in the metric of ``Accuracy.metric``.

    ``arena_head_bytes``, ``arena_tail_bytes``: of a microcontroller, measured: the activations, and
    the structures of the runtime, of TensorFlow Lite Micro; null where it is not installed.
    """

    params: Count
    macs: Count
    file_bytes: Count | None = None
    arena_bytes: Count | None = None
    workspace_bytes: Count | None = None
    accuracy: Number | None = None
    latency_ms: Latency | None = None
    peak_rss_bytes: Count | None = None
    cycles: Count | None = None
    sram_bytes: Count | None = None
    flash_bytes: Count | None = None
    arena_head_bytes: Count | None = None
    arena_tail_bytes: Count | None = None

    @property
    def arena_total_bytes(self) -> int | None:
        """The measured arena of a microcontroller, head and tail; None where it is unknown."""
        if self.arena_head_bytes is None or self.arena_tail_bytes is None:
            return None
        return self.arena_head_bytes + self.arena_tail_bytes

    @property
    def ram_bytes(self) -> int | None:
        """The SRAM of an NPU, the measured arena of a microcontroller, else the planned arena."""
        known = (self.sram_bytes, self.arena_total_bytes, self.arena_bytes)
        return next((size for size in known if size is not None), None)


#: The stages of ``Accuracy`` in order, each with its name in texts.
STAGES = {
    "before": "original in float",
    "factorized": "factorized",
    "pruned": "pruned",
    "recalibrated": "BatchNorm re-estimated",
    "refitted": "refitted",
    "finetuned": "fine-tuned",
    "artifact": "emitted file",
}


class Kernels(Record):
    """The score of an integer file with LiteRT's reference and optimised (XNNPACK) kernels.

    Both on the same ``samples`` test samples. ``counted``: the device rounds as the reference
    kernels do, so their loss against the optimised ones is part of ``Accuracy.kept``.
    """

    reference: Number
    optimised: Number
    samples: Annotated[int, Field(ge=1)]
    counted: bool


class Accuracy(Record):
    """The score after each stage of a build, on the test samples.

    ``before``: the original in float. The next stages are in float, too: factorized, pruned,
    BatchNorm re-estimated, refitted, fine-tuned. ``artifact``: the emitted file. Null for a stage
    that did nothing. ``stage_samples``: stages between the original and the last one before the
    file were scored on so many samples only, in comparison with the original on the same ones; null
    where they were scored on all. ``metric``: the name of the score. ``percent``: it is a fraction
    of 1; otherwise it has a unit of its own, where less may be better (``higher_is_better``).
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
    stage_samples: Annotated[int, Field(ge=1)] | None = None
    kept: Kept | None = None
    kernels: Kernels | None = None

    @model_validator(mode="after")
    def _fractions(self) -> Accuracy:
        if self.percent and any(value > 1 for value in self.ladder().values()):
            raise ValueError("a score in percent is at most 1")
        return self

    def ladder(self) -> dict[str, float]:
        """The score by stage, in order, without the stages that were not measured."""
        return {stage: value for stage in STAGES if (value := getattr(self, stage)) is not None}

    def shown(self, value: float) -> str:
        """A score as text."""
        return score(value, percent=self.percent)


class Round(Record):
    """One round of the search: the predicted and the measured latency of a plan.

    In milliseconds, and in cycles where the device counts those. ``source``: of the measured
    figure, which is estimated from the cost profile or computed by the device's compiler where no
    device was timed; null from an older lrfc.
    """

    predicted_ms: Number | None = None
    measured_ms: Number | None = None
    predicted_cycles: Count | None = None
    measured_cycles: Count | None = None
    source: Source | None = None


class Attempt(Record):
    """A trial that was tested against the accuracy contract.

    ``allowed_divergence``: the bound of its plan. ``kept``: its drop. ``source``: of its latency.
    ``ram_bytes``: see ``Figures.ram_bytes``; null from an older lrfc.
    """

    allowed_divergence: Number | None
    kept: Kept | None
    accuracy: Number | None = None
    latency_ms: Number | None = None
    source: Source | None = None
    ram_bytes: Count | None = None


class Search(Record):
    """The search for the plan.

    ``candidates``: their number. ``undominated``: the number of those that no other candidate of
    the same layer beats in every cost. ``objective``: the minimised quantity.
    ``allowed_divergence``: the bound on the predicted divergence that follows from the allowed drop
    of the score. ``rounds``: the measured plans. ``attempts``: the trials for the contract.
    """

    candidates: Count | None = None
    undominated: Count | None = None
    seconds: Number | None = None
    objective: str | None = None
    allowed_divergence: Number | None = None
    rounds: tuple[Round, ...] = ()
    attempts: tuple[Attempt, ...] = ()


class FloatOriginal(Record):
    """The original's file in fp32, measured together with a file of another precision.

    ``speedup``: of the file that ships over this one. ``reason``: why it is unknown; else null.
    """

    file_bytes: Count | None = None
    latency_ms: Latency | None = None
    speedup: Speedup | None = None
    reason: str | None = None


class FineTuning(Record):
    """The fine-tune.

    ``losses``, ``scores``: the mean training loss and the validation score of each epoch; entry 0
    is the state before the first one. The score is ``Accuracy.metric`` where the data have labels,
    negated where less is better; without labels, minus the divergence from the original's outputs.
    ``best``: the epoch whose weights were used. ``stopped``: why it ended early; else null.
    ``seen``: the evidence that the original was trained on the validation samples; the scores are
    then minus the divergence on changed samples. ``measure``: what the scores are.
    """

    losses: tuple[Number | None, ...]
    scores: tuple[Number | None, ...]
    best: Count
    learning_rate: Number
    steps: Count
    seconds: Number
    stopped: str | None = None
    measure: str | None = None
    seen: str | None = None


class Parity(Record):
    """The largest difference between the outputs of the emitted file and of the Keras model."""

    max_abs_diff: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    samples: Annotated[int, Field(ge=1)]


class Scale(Record):
    """The quantisation of an input or output: value = ``scale`` · (integer − ``zero_point``)."""

    name: str
    scale: Number
    zero_point: int


class File(Record):
    """A file in the output folder; ``path`` is relative to it.

    ``scales``: of its integer inputs, then of its integer outputs.
    """

    path: str
    sha256: Sha256
    bytes: Count
    format: str
    scales: tuple[Scale, ...] = ()


class Patch(Record):
    """Operators of the file that are computed in ``strips`` of rows, one strip after the other.

    ``first``, ``last``: the layers of the first and of the last of them.
    """

    first: str
    last: str
    strips: Annotated[int, Field(ge=2)]


class Manifest(Record):
    """manifest.json. ``device`` and all figures of it are null where nothing was measured.

    ``speedup``: of the compressed file over the original's in the same precision, also where the
    compressed file was not kept. ``float_original``: the original's file in fp32; null for a build
    in fp32 and from an older lrfc. ``problem``: why the build failed; else null. ``verdict``: the
    outcome as fields; null from an older lrfc. ``patches``: the parts of the file that are computed
    in strips. ``profile``: where the time of the build went until
    this file was written; there only with --profile.
    """

    schema_version: Literal[1] = 1
    input: Input
    config: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str | None]
    #: Whether TensorFlow computed with oneDNN, which changes the last bits; null from an older
    #: lrfc.
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
    patches: tuple[Patch, ...] = ()
    artifacts: tuple[File, ...]
    profile: Entry | None = None

    @model_validator(mode="before")
    @classmethod
    def _older(cls, data: Any) -> Any:
        """Convert the latencies of an older lrfc, which had a flag ``estimated`` and no source."""
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
                    # Its interval was computed from one figure and says nothing.
                    fields["speedup"] = {"median": ratio.get("median"), "source": source}
        return fields

    @property
    def original_file(self) -> float | None:
        """The score of the original's file where it differs from that of the original in float.

        None where it does not. The drop, ``Accuracy.kept``, is relative to the original in float.
        """
        file, scores = self.before.accuracy, self.accuracy
        return (
            None
            if file is None
            or scores.before is None
            or scores.shown(file) == scores.shown(scores.before)
            else file
        )

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        fields = self.model_dump(mode="json")
        if self.profile is None:
            del fields["profile"]
        return fields

    def write(self, folder: Path) -> Path:
        """Write manifest.json into the folder."""
        path = folder / "manifest.json"
        path.write_text(
            json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )
        return path

    def write_layers(self, folder: Path) -> Path:
        """Write layers.csv into the folder: the fields of ``Layer``, a line for each layer.

        Ranks are written as 4x8; a null is an empty cell.
        """
        path = folder / "layers.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(Layer.model_fields))
            writer.writeheader()
            for layer in self.layers:
                writer.writerow(layer.model_dump() | {"rank": ranks(layer.rank)})
        return path

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read the manifest of an output folder; UsageError when there is no valid one."""
        if reader.kind(folder / "manifest.json") is None:
            raise UsageError(
                f"'{reader.shown(folder)}' is no output folder of lrfc: it has no readable"
                " manifest.json"
            )
        return Manifest.read_file(folder / "manifest.json")

    @staticmethod
    def read_file(path: Path) -> Manifest:
        """Read a manifest.json under any name; UsageError when it is not a valid one."""
        where = f"'{reader.shown(path)}'"
        try:
            manifest = Manifest.model_validate(
                reader.plain(reader.json_object(reader.contents(path), where))
            )
            BuildConfig.model_validate(
                {
                    name: value
                    for name, value in manifest.config.items()
                    if name in BuildConfig.model_fields
                }
            )
        except ValidationError as error:
            raise UsageError(
                f"{where} is not a manifest of schema version 1: {reader.refused(error)}"
            ) from error
        return manifest


def schema() -> dict[str, Any]:
    """The JSON Schema of manifest.json.

    It ships as manifest.schema.json; ``python -m lrfc.results.manifest`` writes that file.
    """
    fields = Manifest.model_json_schema(mode="serialization")
    required = [name for name in fields["required"] if name != "profile"]
    return (
        {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        | fields
        | {"title": "lrfc manifest.json", "required": required}
    )


def schema_text() -> str:
    """The content of manifest.schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
