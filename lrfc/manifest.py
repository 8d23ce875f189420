"""The record of a build, manifest.json: what went in, what came out, and every number on the way. A value that was not measured is null."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lrfc.errors import UsageError

SCHEMA = Path(__file__).with_name("manifest.schema.json")

_Count = Annotated[int, Field(ge=0)]
_Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class Input(_Record):
    """The model that was compressed. ``preprocessing``: what was done to the samples before the model saw them, which whoever runs it has to do too."""

    path: str
    sha256: _Sha256
    preprocessing: str | None = None


class Layer(_Record):
    """What became of one layer. ``rank`` has a number for each free rank of the method; without a method, ``reason`` says why the layer was left alone.

    ``similarity``: of the feature maps before and after, 1 for equal ones. ``filters_before`` and ``filters_after``: channels of what the layer gives, null
    where it has none to cut, or nothing was to be cut; ``filters_reason`` says why none may go.
    """

    name: str
    kind: str
    method: str | None = None
    rank: tuple[int, ...] | None = None
    params_before: _Count
    params_after: _Count
    macs_before: _Count
    macs_after: _Count
    similarity: _Number | None = None
    reason: str | None = None
    filters_before: _Count | None = None
    filters_after: _Count | None = None
    filters_reason: str | None = None

    @property
    def cut(self) -> bool:
        """Whether filters of it are gone."""
        return self.filters_after != self.filters_before


class Filters(_Record):
    """A group of filters of which some were cut.

    ``layers`` make them; of so many ``units`` those with the indices ``kept`` are left; ``impact`` is the predicted divergence of the outputs.
    """

    name: str
    layers: tuple[str, ...]
    units: _Count
    kept: tuple[_Count, ...]
    impact: _Number | None = None


class Latency(_Record):
    """Milliseconds of one inference: median and 90th percentile over ``n`` runs. ``estimated``: by a compiler or a formula, no device was timed."""

    p50: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    p90: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    n: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    estimated: bool = False


class Figures(_Record):
    """What an emitted file costs and is worth.

    ``arena_bytes`` is the planned activation memory, ``peak_rss_bytes`` of the process that ran the file; ``cycles``, ``sram_bytes`` and ``flash_bytes``
    are those of an NPU, as its compiler computes them. ``accuracy`` is the score that ``Accuracy.metric`` names.
    """

    params: _Count
    macs: _Count
    file_bytes: _Count | None = None
    arena_bytes: _Count | None = None
    accuracy: _Number | None = None
    latency_ms: Latency | None = None
    peak_rss_bytes: _Count | None = None
    cycles: _Count | None = None
    sram_bytes: _Count | None = None
    flash_bytes: _Count | None = None


class Kept(_Record):
    """The drop of the emitted file's accuracy against the original on the same test samples, with its two-sided interval, as fractions of 1.

    ``unit``: of these times 100, 'pp' or '% of' something; null from an older lrfc.
    ``allowed``: what --max-drop allows, null where nothing was asked. ``met``: whether it holds, with the demanded confidence where there is one.
    """

    allowed: _Number | None
    drop: _Number
    low: _Number
    high: _Number
    confidence: _Fraction
    samples: Annotated[int, Field(ge=1)]
    met: bool
    unit: str | None = None


class Kernels(_Record):
    """The score of an emitted file of integers by LiteRT's reference kernels, and by its optimised ones (XNNPACK), on the same ``samples`` out of the test set.

    ``counted``: the device rounds as the reference kernels do, so what they lose against the optimised ones is part of ``Accuracy.kept``.
    """

    reference: _Number
    optimised: _Number
    samples: Annotated[int, Field(ge=1)]
    counted: bool


class Accuracy(_Record):
    """The score at each stage, on the same samples: of the original and of what became of it, in float, and of the emitted file (``artifact``).

    As factorized, with filters cut (``pruned``), with BatchNorms re-estimated, refitted and fine-tuned; null for a stage that had nothing to do.
    ``metric`` names the score; a share of 1 where ``percent``, otherwise in units of its own, of which less may be better (``higher_is_better``).
    """

    metric: str | None = None
    percent: bool = True
    higher_is_better: bool = True
    before: _Number | None = None
    factorized: _Number | None = None
    pruned: _Number | None = None
    recalibrated: _Number | None = None
    refitted: _Number | None = None
    finetuned: _Number | None = None
    artifact: _Number | None = None
    kept: Kept | None = None
    kernels: Kernels | None = None

    @model_validator(mode="after")
    def _shares(self) -> Accuracy:
        if self.percent and any(value > 1 for value in self.ladder().values()):
            raise ValueError("a share is at most 1")
        return self

    def ladder(self) -> dict[str, float]:
        """The stages that were measured, in their order."""
        rungs = ("before", "factorized", "pruned", "recalibrated", "refitted", "finetuned", "artifact")
        return {rung: value for rung in rungs if (value := getattr(self, rung)) is not None}

    def shown(self, value: float) -> str:
        """A score as text."""
        return f"{100 * value:.2f} %" if self.percent else f"{value:.4g}"


class Round(_Record):
    """One turn of the measured search: latency in milliseconds, predicted and measured, and the same in cycles where the device counts those."""

    predicted_ms: _Number | None = None
    measured_ms: _Number | None = None
    predicted_cycles: _Count | None = None
    measured_cycles: _Count | None = None


class Attempt(_Record):
    """A build that was held against the accuracy contract: the predicted divergence that it was allowed, what it kept, and what its file is worth."""

    allowed_divergence: _Number | None
    kept: Kept | None
    accuracy: _Number | None = None
    latency_ms: _Number | None = None


class Search(_Record):
    """How many candidates were evaluated, how many of them no other of the same layer beats, the seconds, and the turns of the measured loop.

    ``objective``: what was made small; ``allowed_divergence``: the predicted divergence of the outputs up to which, learnt from the accuracy that may be lost.
    """

    candidates: _Count | None = None
    undominated: _Count | None = None
    seconds: _Number | None = None
    objective: str | None = None
    allowed_divergence: _Number | None = None
    rounds: tuple[Round, ...] = ()
    attempts: tuple[Attempt, ...] = ()


class Speedup(_Record):
    """How many times as fast the new file is as the original's, measured in turns: the median of the turns and its 95 % interval."""

    median: _Number
    low: _Number
    high: _Number


class FineTuning(_Record):
    """The fine-tune: the mean training loss and the validation score of each epoch, the first entry before the first one; the weights kept are of ``best``.

    The score is ``Accuracy.metric`` where the data have labels, with its sign changed where less is better; otherwise minus the divergence from the
    original's outputs. ``stopped``: why before the last epoch, if so.
    """

    losses: tuple[_Number | None, ...]
    scores: tuple[_Number | None, ...]
    best: _Count
    learning_rate: _Number
    steps: _Count
    seconds: _Number
    stopped: str | None = None


class Parity(_Record):
    """The largest difference between the outputs of the emitted file and of the model, and on how many samples."""

    max_abs_diff: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    samples: Annotated[int, Field(ge=1)]


class Scale(_Record):
    """What the integers of an input or output stand for: value = ``scale`` · (integer - ``zero_point``)."""

    name: str
    scale: _Number
    zero_point: int


class File(_Record):
    """A file in the output folder; ``path`` is relative to it. ``scales``: of its integer inputs and outputs, in their order."""

    path: str
    sha256: _Sha256
    bytes: _Count
    format: str
    scales: tuple[Scale, ...] = ()


class Manifest(_Record):
    """manifest.json. ``device`` and everything measured on it are null where nothing was measured.

    ``speedup``: of the compressed file, also where it was not kept. ``problem``: why the build does not end well, if so.
    """

    schema_version: Literal[1] = 1
    input: Input
    config: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str | None]
    #: Whether TensorFlow computed with oneDNN, which changes the last bits; null in manifests of before it was noted.
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
    problem: str | None = None
    parity: Parity | None = None
    artifacts: tuple[File, ...]

    @property
    def original_file(self) -> float | None:
        """The score of the original's file, where it is another than that of the original in float; ``Accuracy.kept`` is counted from the latter."""
        file, scores = self.before.accuracy, self.accuracy
        return None if file is None or scores.before is None or scores.shown(file) == scores.shown(scores.before) else file

    def write(self, folder: Path) -> Path:
        """Write manifest.json into the folder."""
        path = folder / "manifest.json"
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        return path

    def write_layers(self, folder: Path) -> Path:
        """Write layers.csv into the folder: one line a layer, the fields of ``Layer``; ranks as 4x8, empty where there is no value."""
        path = folder / "layers.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(Layer.model_fields))
            writer.writeheader()
            for layer in self.layers:
                writer.writerow(layer.model_dump() | {"rank": "x".join(map(str, layer.rank or ()))})
        return path

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of an output folder; UsageError when there is none or it is not one of this version."""
        if not (folder / "manifest.json").is_file():
            raise UsageError(f"'{folder}' is no output folder of lrfc: it has no readable manifest.json")
        return Manifest.read_file(folder / "manifest.json")

    @staticmethod
    def read_file(path: Path) -> Manifest:
        """A manifest.json, whatever its name; UsageError when it cannot be read or is not one of this version."""
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"'{path}' cannot be read: {error.strerror}") from error
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the file"
            raise UsageError(f"'{path}' is not a manifest of schema version 1: {where}: {problem['msg']}") from error


def schema() -> dict[str, Any]:
    """The JSON Schema of manifest.json, as shipped in manifest.schema.json (``python -m lrfc.manifest`` writes that file)."""
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
