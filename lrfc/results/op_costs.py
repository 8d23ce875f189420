"""ops.json: the per-op profile of the original's file and of the emitted file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrfc.errors import UsageError
from lrfc.metrics.outcome import GREATEST, MOST
from lrfc.results.memory_plan import MemoryPlans
from lrfc.system import reader

NAME = "ops.json"

_Count = Annotated[int, Field(ge=0, le=MOST)]
_Number = Annotated[float, Field(ge=0, le=GREATEST, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OpCost(_Record):
    """One op.

    ``layer``: the original's layer that the op implements, or is a factor of. ``kernel``: the shape
    of its largest weight. ``output``: the shape of its output for one sample. ``live_bytes``: the
    activations alive while it runs.

    ``predicted_ms``: from the device's cost profile, before any measurement (the share of an op in
    a measured time is not known). Null for an op that the runtime fuses or does not execute, and
    without a cost profile.

    ``cycles``, ``sram_bytes``, ``flash_bytes``: from the compiler of an NPU, null on other devices.
    SRAM is that of the tensors alive while the op runs; flash that of its encoded weights and its
    constants, where data that several ops read count for the first. ``cpu``: the operators of the
    op that run on the CPU.
    """

    name: str
    layer: str
    kind: str
    kernel: tuple[int, ...] | None
    output: tuple[int | None, ...] | None
    params: _Count
    macs: _Count
    weight_bytes: _Count
    live_bytes: _Count
    predicted_ms: _Number | None
    cycles: _Count | None = None
    sram_bytes: _Count | None = None
    flash_bytes: _Count | None = None
    cpu: tuple[str, ...] = ()


class OpProfile(_Record):
    """The ops of both files in execution order.

    ``overhead_ms``: the predicted time of an inference outside of its ops. ``memory``: the
    activations of both files over time; null where the format does not tell them, where a compiler
    places them, and from an older lrfc.
    """

    schema_version: Literal[1] = 1
    overhead_ms: _Number | None
    before: tuple[OpCost, ...]
    after: tuple[OpCost, ...]
    memory: MemoryPlans | None = None

    def write(self, folder: Path) -> Path:
        """Write ops.json into the folder."""
        path = folder / NAME
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return path

    @staticmethod
    def read(folder: Path) -> OpProfile:
        """Read the profile of an output folder; UsageError when it has no readable ops.json."""
        path = folder / NAME
        if reader.kind(path) is None:
            raise UsageError(f"'{folder}' has no readable {NAME}; lrfc build writes one")
        try:
            return OpProfile.model_validate(
                reader.plain(reader.json_object(reader.contents(path), f"'{path}'"))
            )
        except ValidationError as error:
            raise UsageError(f"'{path}' is damaged: {reader.refused(error)}") from error
