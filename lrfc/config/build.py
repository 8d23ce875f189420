"""The options and budgets of a build, validated before any work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from lrfc.config import declare, trust, units
from lrfc.config.declare import Option
from lrfc.config.formats import Form
from lrfc.config.precision import Name, listed
from lrfc.errors import UsageError
from lrfc.nearest import like
from lrfc.system.reader import shown


class Budget(BaseModel):
    """Upper bound: an absolute value in the base unit, or a fraction of the original.

    ``given``: the text of it, with its unit.
    """

    model_config = ConfigDict(frozen=True)

    value: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    relative: bool
    given: str | None = None

    def limit(self, original: float) -> float:
        """The bound in the base unit."""
        return self.value * original if self.relative else self.value

    def __str__(self) -> str:
        return self.given or (f"{100 * self.value:.4g}%" if self.relative else f"{self.value:.10g}")


def _budget(quantity: str) -> Any:
    def parse(given: object) -> object:
        if given is None or isinstance(given, Budget | dict):  # a dict: from a manifest
            return given
        return Budget(**units.budget(quantity, given)._asdict())

    return Annotated[Budget | None, BeforeValidator(parse, json_schema_input_type=str | float)]


class Drop(BaseModel):
    """Allowed loss of the score.

    ``value``: a fraction of 1, so that 0.01 is one percentage point. ``confidence``: the
    probability (such as 0.95) with which the loss has to stay below it, if it has to.
    """

    model_config = ConfigDict(frozen=True)

    value: Annotated[float, Field(gt=0, le=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)] | None = None

    def text(self, unit: str = "pp") -> str:
        """The drop in words; ``unit``: another one for metrics whose drop is not in points."""
        sure = f"@{100 * self.confidence:g}%" if self.confidence is not None else ""
        return f"{100 * self.value:.3g}{unit}{sure}"

    def __str__(self) -> str:
        return self.text()


#: Accuracy that may be lost when no budget is given.
DEFAULT_DROP = Drop(value=0.01)


def _drop(given: object) -> object:
    if given is None or isinstance(given, Drop | dict):  # a dict: from a manifest
        return given
    return dict(zip(("value", "confidence"), units.drop(given), strict=True))


def _seconds(given: object) -> object:
    return None if given is None else units.seconds(given)


#: The methods that a build chooses from by default.
METHODS = ("channel_svd", "spatial_svd", "spatial_svd_w", "tucker2", "cp", "svd")
#: All methods (lrfc.factorization.METHODS).
KNOWN_METHODS = (
    "channel_svd", "channel_svd_1x1", "spatial_svd", "spatial_svd_w", "tucker2", "cp", "cp4", "tt",
    "svd", "tt_matrix", "tucker_matrix",
)  # fmt: skip
#: The default device: the machine that the build runs on.
HOST = "host"
#: Quantities of a Pareto front, besides the predicted divergence: multiply-accumulates, parameters,
#: peak activation memory, and the latency that is predicted for a device.
FRONTS = ("macs", "params", "ram", "latency")
#: The passes that ``print_after`` and ``stop_after`` may name, in no order.
PASSES = (
    "Canonicalise", "ExploreLayers", "LockLayers", "ExploreFilters", "LockFilters", "SelectRanks",
    "Factorize", "PruneFilters", "RecalibrateBatchNorm", "Refit", "FineTune", "FoldBatchNorm",
    "WeighRounding", "EqualizeStages", "CorrectBiases", "QuantizeAware",
)  # fmt: skip
#: The metrics by name, besides 'module:function' (lrfc.metrics.metric).
METRICS = ("accuracy", "miou", "auc", "mse", "fidelity")

#: Upper limits of numbers: beyond them a build would not end, or numpy and TensorFlow refuse them.
MOST_RUNS, MOST_EPOCHS, MOST_POINTS = 100_000, 100_000, 10_000
MOST_THREADS, MOST_SEED, MOST_MULTIPLE = 1_024, 2**32 - 1, 65_536


class BuildConfig(BaseModel):
    """Options of a build, each declared once: type, default, help and example.

    The flags and their help, lrfc.toml and its schema, the environment, the manual and the keywords
    of ``lrfc.build`` are generated from here: after a change, run python -m lrfc.config.resolve.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    # fmt: off
    targets: Annotated[tuple[Form, ...], Option(
        "File format: tflite or onnx; may be repeated. By default, the first that the device runs.",
        ["tflite"], name="target",
    )] = ()
    devices: Annotated[tuple[str, ...], Option(
        "Device that runs the file: a name from lrfc devices list, or a .toml; may be repeated."
        " By default, this machine.",
        ["host"], name="device",
    )] = ()
    memory_mode: Annotated[str | None, Option(
        "Memory mode of every Ethos-U among the devices, by its name in the vela.ini; by default,"
        " that of the device.",
        "Sram_Only",
    )] = None
    system_config: Annotated[str | None, Option(
        "System configuration of every Ethos-U among the devices, by its name in the vela.ini;"
        " by default, that of the device.",
        "Ethos_U55_Deep_Embedded",
    )] = None
    precision: Annotated[Name | None, Option(
        "Number format: fp32, fp16, dynamic, int8 or int16x8; by default, what the device computes"
        " in.",
        "int8",
    )] = None
    int8_io: Annotated[bool, Option(
        "Give an int8 file int8 inputs and outputs; their scales are in the manifest.",
    )] = False
    qat: Annotated[bool, Option(
        "Quantization-aware training: after the fine-tune, train the int8 network with simulated"
        " rounding.",
    )] = False
    data: Annotated[str | None, Option(
        "Data set: digits, a .npz (x, y), a folder of class folders, or package.module:function.",
        "digits",
    )] = None
    test_data: Annotated[str | None, Option(
        "Held-out data for the reported accuracies, in the same forms as --data.", "test.npz",
    )] = None
    max_macs: Annotated[_budget("macs"), Option(  # type: ignore[valid-type]
        "Upper limit on MACs: 50% (of the original), or an amount such as 20M (k, M, G).", "50%",
    )] = None
    max_params: Annotated[_budget("params"), Option(  # type: ignore[valid-type]
        "Upper limit on parameters: 50% (of the original), or an amount such as 100k (k, M).",
        "50%",
    )] = None
    max_size: Annotated[_budget("size"), Option(  # type: ignore[valid-type]
        "Upper limit on the emitted file: 40% (of the original), or an amount such as 200KiB"
        " (B, kB, MB, KiB, MiB).",
        "40%",
    )] = None
    max_ram: Annotated[_budget("ram"), Option(  # type: ignore[valid-type]
        "Upper limit on planned activation memory: 60% (of the original), or an amount such as"
        " 64KiB (B, kB, MB, KiB, MiB).",
        "64KiB",
    )] = None
    max_latency: Annotated[_budget("latency"), Option(  # type: ignore[valid-type]
        "Upper limit on latency on the device: 60% (of the original), or an amount such as 12ms"
        " (us, ms, s).",
        "60%",
    )] = None
    objective: Annotated[Literal["latency", "cycles", "macs", "size", "ram"] | None, Option(
        "Quantity to minimize within --max-drop: latency (the default without any budget), cycles,"
        " macs, size or ram.",
        "latency",
    )] = None
    max_drop: Annotated[
        Drop | None, BeforeValidator(_drop, json_schema_input_type=str), Option(
        "Accuracy that the emitted file may lose, in percentage points: 1pp, or 1pp@95% for a drop"
        f" that holds with 95% confidence. Without any budget, {DEFAULT_DROP}.",
        "1pp", before="objective",
    )] = None
    metric: Annotated[str | None, Option(
        "Score to report and to hold to --max-drop: accuracy, miou, auc, mse, fidelity, or"
        " module:function (with :min if less is better).",
        "accuracy",
    )] = None
    methods: Annotated[tuple[str, ...], Option(
        "Factorizations to choose from, separated by commas; lrfc ops lists them all.",
        commas=True,
    )] = METHODS
    keep: Annotated[tuple[str, ...], Option(
        "Layers to leave unchanged: a name or a glob; may be repeated.", ["head*"],
    )] = ()
    only: Annotated[tuple[str, ...], Option(
        "Only layers to factorize: a name or a glob; may be repeated.", ["conv*"],
    )] = ()
    rank_multiple: Annotated[Annotated[int, Field(ge=1, le=MOST_MULTIPLE)] | None, Option(
        "Make every rank a multiple of this number, such as the channels computed at once.",
        8,
    )] = None
    prune: Annotated[Literal["off", "on", "only"], Option(
        "Prune filters: on (besides factorization, chosen together with the ranks), only (in place"
        " of factorization) or off.",
        "on",
    )] = "off"
    epochs: Annotated[int, Field(ge=0, le=MOST_EPOCHS), Option(
        "Epochs of the one fine-tune; 0 for none.",
    )] = 3
    time_budget: Annotated[
        Annotated[float, Field(gt=0)] | None,
        BeforeValidator(_seconds, json_schema_input_type=str | float), Option(
        "Time limit of the fine-tune, such as 10m; it ends then or after its epochs, whichever"
        " comes first.",
        "10m",
    )] = None
    augment: Annotated[bool | None, Option(
        "Flip and shift images in the fine-tune; by default, for classifiers of natural images.",
        True,
    )] = None
    seed: Annotated[int, Field(ge=0, le=MOST_SEED), Option(
        "Seed of splits, samples and fine-tuning.",
    )] = 0
    threads: Annotated[Annotated[int, Field(ge=1, le=MOST_THREADS)] | None, Option(
        "Threads of the measured runtime; by default, those of the device.", 1,
    )] = None
    out: Annotated[Path | None, Option(
        "Output folder; by default, MODEL-lrfc.", "model-lrfc",
    )] = None
    unsafe_load: Annotated[bool, Option(
        "Load the code of Lambda layers in the file. Only for files that you trust.",
    )] = False
    resume: Annotated[bool, Option(
        "Reuse results of earlier runs, even interrupted ones, on the same model and data.",
    )] = True
    print_after: Annotated[tuple[str, ...], Option(
        "Print the graph after this pass; may be repeated.", ["Factorize"],
    )] = ()
    stop_after: Annotated[str | None, Option(
        "Stop after this pass and emit nothing.", "Factorize",
    )] = None
    # fmt: on

    @property
    def budgets(self) -> dict[str, Budget]:
        """The budgets that are set, by quantity."""
        quantities = ("macs", "params", "size", "ram", "latency")
        budgets = {name: getattr(self, f"max_{name}") for name in quantities}
        return {name: budget for name, budget in budgets.items() if budget is not None}

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [method for method in methods if method not in KNOWN_METHODS]
        if unknown or not methods:
            near = like(unknown[0], KNOWN_METHODS) if unknown else ""
            names = ", ".join(unknown) or "(none)"
            raise ValueError(
                f"unknown method {shown(names)}{near}; known are {', '.join(KNOWN_METHODS)}"
            )
        return methods

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str | None) -> str | None:
        # 'mixed' is the name of what is chosen where some outputs have classes and some have
        # values.
        if metric is None or metric in (*METRICS, "mixed") or trust.METRIC.fullmatch(metric):
            return metric
        raise ValueError(
            f"unknown metric '{shown(metric, 60)}'{like(metric, METRICS)}; known are"
            f" {', '.join(METRICS)}, and module:function (higher is better) or module:function:min"
            " (lower is better)"
        )

    @field_validator("print_after", "stop_after")
    @classmethod
    def _known_passes(cls, passes: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        for name in (passes,) if isinstance(passes, str) else passes or ():
            if name not in PASSES:
                raise ValueError(
                    f"no pass is named '{shown(name, 60)}'{like(name, PASSES)}; they are"
                    f" {', '.join(sorted(PASSES))}"
                )
        return passes

    @field_validator("keep", "only")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if any(not pattern.strip() for pattern in patterns):
            raise ValueError("'' names no layer; give a name or a glob, such as head*")
        return patterns


def parse(**options: Any) -> BuildConfig:
    """The validated configuration; UsageError names the option, its value and the remedy."""
    known(options, BuildConfig.model_fields)
    try:
        return BuildConfig(**options)
    except ValidationError as error:
        names = {field: name for name, field in declare.renamed(BuildConfig).items()}
        field = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else "options"
        raise UsageError(
            f"--{names.get(field, field).replace('_', '-')}: {problem(error)}"
        ) from error


def known(given: Iterable[str], names: Iterable[str]) -> None:
    """Raise UsageError, with the nearest of the names, unless every keyword is one of them."""
    names = list(names)
    for name in given:
        if name not in names:
            raise UsageError(
                "unknown option"
                f" '{shown(name, 60)}'{like(name, names) or '; known are ' + ', '.join(names)}"
            )


def problem(error: ValidationError) -> str:
    """The first error of a value: the value, and what is accepted."""
    first = error.errors()[0]
    given, context = shown(first.get("input"), 60), first.get("ctx", {})
    match first["type"]:
        case "value_error":
            return first["msg"].removeprefix("Value error, ")
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            return f"'{given}' is not known{like(given, choices)}; choose {listed(tuple(choices))}"
        case "greater_than_equal":
            return f"{given} is out of range: at least {context['ge']:,}"
        case "less_than_equal":
            return f"{given} is out of range: at most {context['le']:,}"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size" | "finite_number":
            return f"'{given}' is not a whole number that can be used here"
        case "bool_parsing" | "bool_type":
            return f"'{given}' is neither true nor false"
        case _:
            return f"'{given}': {first['msg'][0].lower()}{first['msg'][1:]}"


def frontier(over: Sequence[str]) -> None:
    """Raise UsageError unless a Pareto front can be drawn over these quantities."""
    unknown = [quantity for quantity in over if quantity not in FRONTS]
    if unknown or not over:
        near = like(unknown[0], FRONTS) if unknown else ""
        raise UsageError(
            f"a Pareto front cannot be drawn over '{', '.join(unknown)}'{near}; choose from"
            f" {', '.join(FRONTS)}"
        )
