"""The options of ``lrfc.build`` as keywords, written by python -m lrfc.config.resolve."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict


class BuildOptions(TypedDict, total=False):
    """Types of the options by keyword; lrfc.config.build.BuildConfig declares them."""

    memory_mode: str | None
    system_config: str | None
    precision: Literal["fp32", "fp16", "dynamic", "int8", "int16x8"] | None
    int8_io: bool
    qat: bool
    max_macs: str | float | None
    max_params: str | float | None
    max_size: str | float | None
    max_ram: str | float | None
    max_latency: str | float | None
    max_drop: str | None
    objective: Literal["latency", "cycles", "macs", "size", "ram"] | None
    metric: str | None
    methods: list[str] | tuple[str, ...]
    keep: list[str] | tuple[str, ...]
    only: list[str] | tuple[str, ...]
    rank_multiple: int | None
    prune: Literal["auto", "off", "on", "only"]
    heads: Literal["narrow", "whole"]
    patches: Literal["auto", "off"]
    epochs: int | None
    training: Literal["lrfc", "compiled"]
    time_budget: str | float | None
    augment: bool | None
    class_weights: Literal["none", "balanced"]
    log_dir: str | Path | None
    seed: int
    threads: int | None
    memory: str | int | None
    out: str | Path | None
    unsafe_load: bool
    resume: bool
    profile: bool
    print_after: list[str] | tuple[str, ...]
    stop_after: str | None
