"""ops.json: what each op of the original's file and of the emitted one costs, in the order in which they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrfc.errors import UsageError
from lrfc.metrics.outcome import GREATEST, MOST
from lrfc.system import reader

NAME = "ops.json"

_Count = Annotated[int, Field(ge=0, le=MOST)]
_Number = Annotated[float, Field(ge=0, le=GREATEST, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OpCost(_Record):
    """One op.

    ``layer``: the original's layer that it is, or is a factor of. ``kernel``: shape of its largest
    weight, ``output`` of one sample's output.

    ``live_bytes``: activations alive while it runs. ``predicted_ms``: by the cost profile of the
    device, before anything was measured; the op's share of a measured time is not known. Null where
    the runtime executes nothing of its own for it, or nothing is known. ``cycles``, ``sram_bytes``
    (alive meanwhile) and ``flash_bytes`` (its weights as encoded, and its constants; what several
    ops read counts for the first): what the compiler of an NPU says of the op in this file, null
    elsewhere; ``cpu``: the operators that it leaves to the CPU.
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
    """Both files, op by op. ``overhead_ms``: of an inference beside its ops, predicted."""

    schema_version: Literal[1] = 1
    overhead_ms: _Number | None
    before: tuple[OpCost, ...]
    after: tuple[OpCost, ...]

    def write(self, folder: Path) -> Path:
        """Write ops.json into the folder."""
        path = folder / NAME
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return path

    @staticmethod
    def read(folder: Path) -> OpProfile:
        """The ops of an output folder; UsageError when it has no readable ops.json."""
        path = folder / NAME
        if reader.kind(path) is None:
            raise UsageError(f"'{folder}' has no readable {NAME}; lrfc build writes one")
        try:
            return OpProfile.model_validate(
                reader.plain(reader.json_object(reader.contents(path), f"'{path}'"))
            )
        except ValidationError as error:
            raise UsageError(f"'{path}' is damaged: {reader.refused(error)}") from error
