"""What the user asks for: options and budgets, validated before any work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from lrfc.config import trust, units
from lrfc.config.formats import Form
from lrfc.config.options import FIELDS
from lrfc.config.precision import Name, listed
from lrfc.errors import UsageError
from lrfc.nearest import like
from lrfc.system.reader import shown


class Budget(BaseModel):
    """An upper bound: an absolute value in the base unit, or a fraction of the original that may be kept. ``given``: the text of it, with its unit."""

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
    """What the score may lose: ``value`` as a fraction of 1 (0.01 is one percentage point), with ``confidence`` (0.95) where it has to be sure."""

    model_config = ConfigDict(frozen=True)

    value: Annotated[float, Field(gt=0, le=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)] | None = None

    def text(self, unit: str = "pp") -> str:
        """With another unit for metrics whose drop is not in points."""
        return f"{100 * self.value:.3g}{unit}" + (f"@{100 * self.confidence:g}%" if self.confidence is not None else "")

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


#: The methods that a build chooses from unless it is told otherwise, and all that it can be told (lrfc.factorization.METHODS).
METHODS = ("channel_svd", "spatial_svd", "spatial_svd_w", "tucker2", "cp", "svd")
KNOWN_METHODS = (
    "channel_svd", "channel_svd_1x1", "spatial_svd", "spatial_svd_w", "tucker2", "cp", "cp4", "tt", "svd", "tt_matrix", "tucker_matrix",
)  # fmt: skip
#: The device of a build that names none: the machine that it runs on.
HOST = "host"
#: What a Pareto front can be drawn over, besides the predicted divergence: multiply-accumulates, parameters, bytes of activations alive at once, and the
#: latency that is predicted for a device.
FRONTS = ("macs", "params", "ram", "latency")
#: The passes that ``print_after`` and ``stop_after`` may name, in no order.
PASSES = (
    "Canonicalise", "ExploreLayers", "LockLayers", "ExploreFilters", "LockFilters", "SelectRanks", "Factorize", "PruneFilters", "RecalibrateBatchNorm",
    "Refit", "FineTune", "FoldBatchNorm", "WeighRounding", "BalanceStages", "CorrectBiases", "QuantizeAware",
)  # fmt: skip
#: The metrics by name, besides 'module:function' (lrfc.metrics.metric).
METRICS = ("accuracy", "miou", "auc", "mse", "fidelity")

#: The largest numbers that are taken: beyond them a build would never end, or numpy and TensorFlow take no such number.
MOST_RUNS, MOST_THREADS, MOST_EPOCHS, MOST_SEED, MOST_MULTIPLE, MOST_POINTS = 100_000, 1_024, 100_000, 2**32 - 1, 65_536, 10_000


class BuildConfig(BaseModel):
    """Every option of a build."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    targets: tuple[Form, ...] = ()
    devices: tuple[str, ...] = ()
    memory_mode: str | None = None
    system_config: str | None = None
    precision: Name | None = None
    int8_io: bool = False
    qat: bool = False
    data: str | None = None
    test_data: str | None = None
    max_macs: _budget("macs") = None  # type: ignore[valid-type]
    max_params: _budget("params") = None  # type: ignore[valid-type]
    max_size: _budget("size") = None  # type: ignore[valid-type]
    max_ram: _budget("ram") = None  # type: ignore[valid-type]
    max_latency: _budget("latency") = None  # type: ignore[valid-type]
    objective: Literal["latency", "cycles", "macs", "size", "ram"] | None = None
    max_drop: Annotated[Drop | None, BeforeValidator(_drop, json_schema_input_type=str)] = None
    metric: str | None = None
    methods: tuple[str, ...] = METHODS
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    rank_multiple: Annotated[int, Field(ge=1, le=MOST_MULTIPLE)] | None = None
    prune: Literal["off", "on", "only"] = "off"
    epochs: Annotated[int, Field(ge=0, le=MOST_EPOCHS)] = 3
    time_budget: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_seconds, json_schema_input_type=str | float)] = None
    augment: bool | None = None
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] = 0
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | None = None
    out: Path | None = None
    unsafe_load: bool = False
    resume: bool = True
    print_after: tuple[str, ...] = ()
    stop_after: str | None = None

    @property
    def budgets(self) -> dict[str, Budget]:
        """The budgets that are given, by quantity."""
        given = {name: getattr(self, f"max_{name}") for name in ("macs", "params", "size", "ram", "latency")}
        return {name: budget for name, budget in given.items() if budget is not None}

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [method for method in methods if method not in KNOWN_METHODS]
        if unknown or not methods:
            near = like(unknown[0], KNOWN_METHODS) if unknown else ""
            names = ", ".join(unknown) or "(none)"
            raise ValueError(f"unknown method {shown(names)}{near}; known are {', '.join(KNOWN_METHODS)}")
        return methods

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str | None) -> str | None:
        # 'mixed' is the name of what is chosen where some outputs have classes and some have values.
        if metric is None or metric in (*METRICS, "mixed") or trust.METRIC.fullmatch(metric):
            return metric
        raise ValueError(
            f"unknown metric '{shown(metric, 60)}'{like(metric, METRICS)}; known are {', '.join(METRICS)}, and"
            " module:function (higher is better) or module:function:min (lower is better)"
        )

    @field_validator("print_after", "stop_after")
    @classmethod
    def _known_passes(cls, passes: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        for name in (passes,) if isinstance(passes, str) else passes or ():
            if name not in PASSES:
                raise ValueError(f"no pass is named '{shown(name, 60)}'{like(name, PASSES)}; they are {', '.join(sorted(PASSES))}")
        return passes

    @field_validator("keep", "only")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if any(not pattern.strip() for pattern in patterns):
            raise ValueError("'' names no layer; give a name or a glob, such as head*")
        return patterns


def parse(**options: Any) -> BuildConfig:
    """The validated configuration; UsageError names the option, its value and the way out."""
    known(options, BuildConfig.model_fields)
    try:
        return BuildConfig(**options)
    except ValidationError as error:
        names = {field: name for name, field in FIELDS.items()}
        field = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else "options"
        raise UsageError(f"--{names.get(field, field).replace('_', '-')}: {problem(error)}") from error


def known(given: Iterable[str], names: Iterable[str]) -> None:
    """Raise UsageError, with the nearest of the names, unless every keyword is one of them."""
    names = list(names)
    for name in given:
        if name not in names:
            raise UsageError(f"unknown option '{shown(name, 60)}'{like(name, names) or '; known are ' + ', '.join(names)}")


def problem(error: ValidationError) -> str:
    """The first thing that is wrong with an option: its value, and what would do."""
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
        raise UsageError(f"a Pareto front cannot be drawn over '{', '.join(unknown)}'{near}; choose from {', '.join(FRONTS)}")
