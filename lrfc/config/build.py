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
from lrfc.system.reader import shown
from lrfc.text import like


class Budget(BaseModel):
    """An upper limit: an absolute value in the base unit, or a fraction of the original.

    ``given``: the text that the user wrote, with its unit.
    """

    model_config = ConfigDict(frozen=True)

    value: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    relative: bool
    given: str | None = None

    def limit(self, original: float) -> float:
        """Return the limit in the base unit, for the original's value in that unit."""
        return self.value * original if self.relative else self.value

    def __str__(self) -> str:
        return self.given or (f"{100 * self.value:.4g}%" if self.relative else f"{self.value:.10g}")


#: The value that lifts a limit that holds by default.
NO_LIMIT = "none"


def _budget(quantity: str, *, liftable: bool = False) -> Any:
    """The type of a field that holds a budget on that quantity, or NO_LIMIT where it may."""

    def parse(value: object) -> object:
        if value is None or isinstance(value, Budget | dict):  # a dict: from a manifest
            return value
        if not liftable:
            return Budget(**units.budget(quantity, value)._asdict())
        if isinstance(value, str) and value.strip().lower() == NO_LIMIT:
            return NO_LIMIT
        try:
            return Budget(**units.budget(quantity, value)._asdict())
        except ValueError as error:
            raise ValueError(f"{error}; {NO_LIMIT} lifts the limit") from error

    held = Budget | Literal["none"] | None if liftable else Budget | None
    return Annotated[held, BeforeValidator(parse, json_schema_input_type=str | float)]


class Drop(BaseModel):
    """The largest drop of the score that is allowed.

    ``value``: a fraction of 1, so that 0.01 is one percentage point. ``confidence``: the level
    (such as 0.95) of the confidence interval that has to lie within the drop; None to compare the
    drop itself.
    """

    model_config = ConfigDict(frozen=True)

    value: Annotated[float, Field(gt=0, le=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)] | None = None

    def text(self, unit: str = "pp") -> str:
        """Return the drop as text; ``unit``: for metrics whose drop is not in points."""
        confidence = f"@{100 * self.confidence:g}%" if self.confidence is not None else ""
        return f"{100 * self.value:.3g}{unit}{confidence}"

    def __str__(self) -> str:
        return self.text()


#: The allowed drop when the user sets no budget.
DEFAULT_DROP = Drop(value=0.01)


def _drop(value: object) -> object:
    if value is None or isinstance(value, Drop | dict):  # a dict: from a manifest
        return value
    return dict(zip(("value", "confidence"), units.drop(value), strict=True))


def _seconds(value: object) -> object:
    return None if value is None else units.seconds(value)


def _memory(value: object) -> object:
    return None if value is None else units.memory(value)


#: The factorization methods that a build chooses from by default.
METHODS = ("channel_svd", "spatial_svd", "spatial_svd_w", "tucker2", "cp", "svd")
#: All factorization methods, as in lrfc.factorization.METHODS.
KNOWN_METHODS = (
    "channel_svd", "channel_svd_1x1", "spatial_svd", "spatial_svd_w", "tucker2", "cp", "cp4", "tt",
    "svd", "tt_matrix", "tucker_matrix",
)  # fmt: skip
#: The default device: the machine that the build runs on.
HOST = "host"
#: Quantities of a Pareto front, besides the predicted divergence: MACs, parameters, peak activation
#: memory, and the latency predicted for a device.
FRONTS = ("macs", "params", "ram", "latency")
#: The passes that ``print_after`` and ``stop_after`` may name.
PASSES = (
    "Canonicalise", "RotateHeads", "ExploreLayers", "LockLayers", "ExploreFilters", "LockFilters",
    "SelectRanks", "Factorize", "PruneFilters", "RecalibrateBatchNorm", "Refit", "FineTune",
    "FoldBatchNorm", "WeighRounding", "EqualizeStages", "CorrectBiases", "QuantizeAware",
)  # fmt: skip
#: The built-in metrics (lrfc.metrics.metric); 'module:function' names another one.
METRICS = ("accuracy", "miou", "auc", "mse", "fidelity")

#: Upper limits of options: beyond them, a build would not end or numpy and TensorFlow would fail.
MOST_RUNS, MOST_EPOCHS, MOST_POINTS = 100_000, 100_000, 10_000
MOST_THREADS, MOST_SEED, MOST_MULTIPLE = 1_024, 2**32 - 1, 65_536


class BuildConfig(BaseModel):
    """The options of a build, each declared once: type, default, help and example.

    The flags and their help, lrfc.toml and its schema, the environment, the manual and the keywords
    of ``lrfc.build`` are generated from here: after a change, run python -m lrfc.config.resolve.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    # fmt: off
    targets: Annotated[tuple[Form, ...], Option(
        "File format to emit: tflite or onnx. May be repeated. By default, the first format that"
        " the device runs.",
        ["tflite"], name="target",
    )] = ()
    devices: Annotated[tuple[str, ...], Option(
        "Device that runs the file: a name from lrfc devices list, or the path of a .toml profile."
        " May be repeated. By default, this machine.",
        ["host"], name="device",
    )] = ()
    memory_mode: Annotated[str | None, Option(
        "Memory mode of all Ethos-U devices of the build, by its name in the vela.ini. By default,"
        " the mode in the device's profile.",
        "Sram_Only",
    )] = None
    system_config: Annotated[str | None, Option(
        "System configuration of all Ethos-U devices of the build, by its name in the vela.ini."
        " By default, the configuration in the device's profile.",
        "Ethos_U55_Deep_Embedded",
    )] = None
    precision: Annotated[Name | None, Option(
        "Number format of the file: fp32, fp16, dynamic, int8 or int16x8. By default, the precision"
        " in the device's profile.",
        "int8",
    )] = None
    int8_io: Annotated[bool, Option(
        "Emit an int8 file with int8 inputs and outputs instead of those of the model. Their scales"
        " are in the manifest.",
    )] = False
    qat: Annotated[bool, Option(
        "Train once more after the fine-tune, with the rounding of the int8 file simulated"
        " (quantisation-aware training).",
    )] = False
    data: Annotated[str | None, Option(
        "Data set: digits, an .npz file (x, y), a folder of .npy files, a folder with one folder of"
        " images for each class, or package.module:function. By default, synthetic inputs.",
        "digits",
    )] = None
    test_data: Annotated[str | None, Option(
        "Test samples for the reported scores, in the same forms as --data. By default, those in"
        " --data, or else its validation samples.",
        "test.npz",
    )] = None
    max_macs: Annotated[_budget("macs"), Option(  # type: ignore[valid-type]
        "Upper limit on MACs: a percentage of the original, such as 50%, or an amount in k, M or G,"
        " such as 20M.",
        "50%",
    )] = None
    max_params: Annotated[_budget("params"), Option(  # type: ignore[valid-type]
        "Upper limit on parameters: a percentage of the original, such as 50%, or an amount in k or"
        " M, such as 100k.",
        "50%",
    )] = None
    max_size: Annotated[_budget("size"), Option(  # type: ignore[valid-type]
        "Upper limit on the size of the emitted file: a percentage of the original, such as 40%, or"
        " an amount in B, kB, MB, KiB or MiB, such as 200KiB.",
        "40%",
    )] = None
    max_ram: Annotated[_budget("ram", liftable=True), Option(  # type: ignore[valid-type]
        "Upper limit on planned activation memory, on microcontrollers with the structures of the"
        " runtime (head and tail): a percentage of the original, such as 60%, an amount in B, kB,"
        " MB, KiB or MiB, such as 64KiB, or none. By default, no more than the original's and the"
        " growth_bytes of the device's profile.",
        "64KiB",
    )] = None
    max_latency: Annotated[_budget("latency"), Option(  # type: ignore[valid-type]
        "Upper limit on the latency of one inference on the device: a percentage of the original,"
        " such as 60%, or an amount in us, ms or s, such as 12ms.",
        "60%",
    )] = None
    objective: Annotated[Literal["latency", "cycles", "macs", "size", "ram"] | None, Option(
        "Quantity to minimise within --max-drop: latency, cycles, macs, size or ram. By default,"
        " latency when no budget is set.",
        "latency",
    )] = None
    max_drop: Annotated[
        Drop | None, BeforeValidator(_drop, json_schema_input_type=str), Option(
        "Largest allowed drop of the emitted file's score, in percentage points: 1pp, or 1pp@95% to"
        f" require it with 95% confidence. By default, {DEFAULT_DROP} when no budget is set.",
        "1pp", before="objective",
    )] = None
    metric: Annotated[str | None, Option(
        "Score to report and to hold against --max-drop: accuracy, miou, auc, mse, fidelity, or"
        " package.module:function (with :min appended if lower is better). By default, the one that"
        " suits the labels.",
        "accuracy",
    )] = None
    methods: Annotated[tuple[str, ...], Option(
        "Factorization methods to choose from, separated by commas. lrfc ops lists all methods.",
        commas=True,
    )] = METHODS
    keep: Annotated[tuple[str, ...], Option(
        "Layer to leave unchanged, by its name or a glob. May be repeated.", ["head*"],
    )] = ()
    only: Annotated[tuple[str, ...], Option(
        "Layer to compress, by its name or a glob; all others stay unchanged. May be repeated."
        " By default, all layers.",
        ["conv*"],
    )] = ()
    rank_multiple: Annotated[Annotated[int, Field(ge=1, le=MOST_MULTIPLE)] | None, Option(
        "Number that every rank is a multiple of, such as the channels that the device computes at"
        " once. By default, the number in the device's profile.",
        8,
    )] = None
    prune: Annotated[Literal["auto", "off", "on", "only"], Option(
        "Pruning of filters: auto (together with factorization, in networks with depthwise"
        " convolutions or attention and where ranks alone are not enough for a limit on memory),"
        " off, on (always together) or only (no factorization).",
        "on",
    )] = "auto"
    heads: Annotated[Literal["narrow", "whole"], Option(
        "What attention layers lose where filters are cut: narrow (the same number of dimensions"
        " of each head, those that matter least) or whole (some of the heads).",
        "whole",
    )] = "narrow"
    patches: Annotated[Literal["auto", "off"], Option(
        "Parts of the network that are computed strip by strip where the limit on memory asks for"
        " less than they take at once: auto (int8 on microcontrollers) or off. Same outputs, more"
        " MACs.",
        "off",
    )] = "auto"
    epochs: Annotated[Annotated[int, Field(ge=0, le=MOST_EPOCHS)] | None, Option(
        "Number of epochs of the fine-tune; 0 for no fine-tune. By default 3, but none where the"
        " refitted network scores no lower than the original on the validation samples.",
        3,
    )] = None
    training: Annotated[Literal["lrfc", "compiled"], Option(
        "How the fine-tune trains: lrfc (with the original as teacher, at a learning rate found by"
        " trials) or compiled (with the optimizer, learning rate and loss that the model was"
        " compiled with).",
        "compiled",
    )] = "lrfc"
    time_budget: Annotated[
        Annotated[float, Field(gt=0)] | None,
        BeforeValidator(_seconds, json_schema_input_type=str | float), Option(
        "Time limit of the fine-tune in s, m or h, such as 10m. It ends then or after its epochs,"
        " whichever comes first. By default, no limit.",
        "10m",
    )] = None
    augment: Annotated[bool | None, Option(
        "Flip, shift and mix the images in the fine-tune. By default, only for classifiers of"
        " natural images.",
        True,
    )] = None
    class_weights: Annotated[Literal["none", "balanced"], Option(
        "Weights of the samples in the loss of the fine-tune: none, or balanced (all classes weigh"
        " the same).",
        "balanced",
    )] = "none"
    log_dir: Annotated[Path | None, Option(
        "Folder for TensorBoard: loss, validation score and learning rate of the fine-tune, by"
        " epoch.",
        "logs",
    )] = None
    seed: Annotated[int, Field(ge=0, le=MOST_SEED), Option(
        "Seed of all random choices: splits, samples and training.",
    )] = 0
    threads: Annotated[Annotated[int, Field(ge=1, le=MOST_THREADS)] | None, Option(
        "Number of threads of the runtime that is measured. By default, the number in the device's"
        " profile.",
        1,
    )] = None
    memory: Annotated[
        int | None, BeforeValidator(_memory, json_schema_input_type=str | int), Option(
        "Memory that the arrays of the command may take together, in MB, GB, MiB or GiB, such as"
        " 4GiB; TensorFlow itself takes 0.6 GiB more. By default, half of the machine's.",
        "4GiB",
    )] = None
    out: Annotated[Path | None, Option(
        "Output folder. By default, MODEL-lrfc in the current folder.", "model-lrfc",
    )] = None
    unsafe_load: Annotated[bool, Option(
        "Run the code of Lambda layers in the model file. Only for files that you trust.",
    )] = False
    resume: Annotated[bool, Option(
        "Reuse cached results of earlier runs, even interrupted ones, on the same model and data.",
    )] = True
    profile: Annotated[bool, Option(
        "Record where the time of the build goes, by stage, layer and plan, in the manifest and the"
        " report.",
    )] = False
    print_after: Annotated[tuple[str, ...], Option(
        "Pass after which the graph is printed. May be repeated.", ["Factorize"],
    )] = ()
    stop_after: Annotated[str | None, Option(
        "Pass after which the build stops, without emitting a file.", "Factorize",
    )] = None
    # fmt: on

    @property
    def budgets(self) -> dict[str, Budget]:
        """The budgets that are set, by quantity."""
        quantities = ("macs", "params", "size", "ram", "latency")
        budgets = {name: getattr(self, f"max_{name}") for name in quantities}
        return {name: budget for name, budget in budgets.items() if isinstance(budget, Budget)}

    @property
    def finetunes(self) -> bool:
        """Whether the pipeline has a fine-tune."""
        return self.epochs != 0

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
        # 'mixed' is chosen where some outputs have class labels and others have values.
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
    """Validate options; UsageError names the option, its value and the remedy."""
    known(options, BuildConfig.model_fields)
    try:
        return BuildConfig(**options)
    except ValidationError as error:
        names = {field: name for name, field in declare.renamed(BuildConfig).items()}
        location = error.errors()[0]["loc"]
        field = str(location[0]) if location else "options"
        raise UsageError(
            f"--{names.get(field, field).replace('_', '-')}: {problem(error)}"
        ) from error


def known(keywords: Iterable[str], names: Iterable[str]) -> None:
    """Raise UsageError, with the nearest of the names, unless every keyword is one of them."""
    names = list(names)
    for name in keywords:
        if name not in names:
            near = like(name, names) or f"; known are {', '.join(names)}"
            raise UsageError(f"unknown option '{shown(name, 60)}'{near}")


def problem(error: ValidationError) -> str:
    """Return the message for the first error: the value, and the values that are accepted."""
    first = error.errors()[0]
    value, context = shown(first.get("input"), 60), first.get("ctx", {})
    match first["type"]:
        case "value_error":
            return first["msg"].removeprefix("Value error, ")
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            return f"'{value}' is not known{like(value, choices)}; choose {listed(tuple(choices))}"
        case "greater_than_equal":
            return f"{value} is out of range: at least {context['ge']:,}"
        case "less_than_equal":
            return f"{value} is out of range: at most {context['le']:,}"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size" | "finite_number":
            return f"'{value}' is not a whole number that can be used here"
        case "bool_parsing" | "bool_type":
            return f"'{value}' is neither true nor false"
        case _:
            return f"'{value}': {first['msg'][0].lower()}{first['msg'][1:]}"


def frontier(over: Sequence[str]) -> None:
    """Raise UsageError unless a Pareto front can be drawn over these quantities."""
    twice = next(
        (quantity for number, quantity in enumerate(over) if quantity in over[:number]), None
    )
    if twice is not None:
        raise UsageError(f"a Pareto front is drawn over '{twice}' once: it is named twice")
    unknown = [quantity for quantity in over if quantity not in FRONTS]
    if unknown or not over:
        near = like(unknown[0], FRONTS) if unknown else ""
        raise UsageError(
            f"a Pareto front cannot be drawn over '{', '.join(unknown)}'{near}; choose from"
            f" {', '.join(FRONTS)}"
        )
