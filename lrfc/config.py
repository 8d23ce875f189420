"""What the user asks for: options and budgets, validated before any work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lrfc.errors import UsageError
from lrfc.precision import Name

#: Quantity → unit → factor to the base unit (MACs, parameters, bytes, seconds are counted as such; latency in milliseconds).
_UNITS: dict[str, dict[str, float]] = {
    "macs": {"": 1, "k": 1e3, "m": 1e6, "g": 1e9},
    "params": {"": 1, "k": 1e3, "m": 1e6},
    "size": {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "kib": 2**10, "mib": 2**20},
    "ram": {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "kib": 2**10, "mib": 2**20},
    "latency": {"ms": 1, "us": 1e-3, "µs": 1e-3, "s": 1e3},
}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zµ%]*)\s*", re.IGNORECASE)


class Budget(BaseModel):
    """An upper bound: an absolute value in the base unit, or a fraction of the original that may be kept. ``given``: the text of it, with its unit."""

    model_config = ConfigDict(frozen=True)

    value: float
    relative: bool
    given: str | None = None

    def limit(self, original: float) -> float:
        """The bound in the base unit."""
        return self.value * original if self.relative else self.value

    def __str__(self) -> str:
        return self.given or (f"{100 * self.value:.4g}%" if self.relative else f"{self.value:.10g}")


def _budget(quantity: str) -> Any:
    units = _UNITS[quantity]

    def parse(text: object) -> object:
        if text is None or isinstance(text, Budget | dict):  # a dict: from a manifest
            return text
        match = _NUMBER.fullmatch(str(text))
        unit = match.group(2).lower() if match else ""
        if match is None or (unit != "%" and unit not in units):
            raise ValueError(
                f"{text!r} is not a {quantity} budget: give a percentage that is kept (50%) or an amount in {', '.join(u or 'plain numbers' for u in units)}"
            )
        amount, given = float(match.group(1)), "".join(match.groups()) if isinstance(text, str) else None
        if unit == "%":
            if not 0 < amount <= 100:
                raise ValueError(f"{text} is out of range: a percentage is what is kept of the original, above 0% and at most 100%")
            return Budget(value=amount / 100, relative=True, given=given)
        if amount <= 0:
            raise ValueError(f"{text} is out of range: a budget is above 0")
        return Budget(value=amount * units[unit], relative=False, given=given)

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


def _drop(text: object) -> object:
    if text is None or isinstance(text, Drop | dict):
        return text
    if isinstance(text, int | float):
        return {"value": float(text)}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:pp)?\s*(?:@\s*(\d+(?:\.\d+)?)\s*%\s*)?", str(text))
    if match is None:
        raise ValueError(f"{text!r} is not an accuracy drop: give percentage points, such as 1pp, or 1pp@95% to be sure of it")
    return {"value": float(match[1]) / 100, "confidence": None if match[2] is None else float(match[2]) / 100}


def _seconds(text: object) -> object:
    if text is None or isinstance(text, int | float):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a time: give seconds, minutes or hours, such as 90s, 10m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]


#: The methods that a build chooses from unless it is told otherwise, and all that it can be told (lrfc.factorization.METHODS).
METHODS = ("channel_svd", "spatial_svd", "spatial_svd_w", "tucker2", "cp", "svd")
KNOWN_METHODS = (
    "channel_svd", "channel_svd_1x1", "spatial_svd", "spatial_svd_w", "tucker2", "cp", "cp4", "tt", "svd", "tt_matrix", "tucker_matrix",
)  # fmt: skip


class BuildConfig(BaseModel):
    """Every option of a build."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    targets: tuple[Literal["tflite", "onnx"], ...] = ()
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
    rank_multiple: Annotated[int, Field(ge=1, le=65536)] | None = None
    prune: Literal["off", "on", "only"] = "off"
    epochs: Annotated[int, Field(ge=0, le=1_000_000)] = 3
    time_budget: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_seconds, json_schema_input_type=str | float)] = None
    augment: bool | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
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

    @model_validator(mode="after")
    def _known_methods(self) -> BuildConfig:
        unknown = [method for method in self.methods if method not in KNOWN_METHODS]
        if unknown or not self.methods:
            raise ValueError(f"unknown method {', '.join(unknown) or '(none)'}; known are {', '.join(KNOWN_METHODS)}")
        return self


def parse(**options: Any) -> BuildConfig:
    """The validated configuration; UsageError names the option, its value and the way out."""
    try:
        return BuildConfig(**options)
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + str(problem["loc"][0]).replace("_", "-") if problem["loc"] else "options"
        raise UsageError(f"{option}: {problem['msg'].removeprefix('Value error, ')}") from error
