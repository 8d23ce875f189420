"""The activations of the original's file and of the emitted one over time, with their places."""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lrfc.metrics.outcome import MOST

_Count = Annotated[int, Field(ge=0, le=MOST)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_Record):
    """An operator of a file: its name in schema.fbs, and the layer that it belongs to."""

    operator: str
    layer: str


class Place(_Record):
    """An activation of a file, alive from step ``first`` to ``last`` inclusive.

    ``name``: the layer that computes it, with its rows where it is a strip. ``planned``: its offset
    in the arena by the plan that the file holds; null without one. ``own``: by the runtime's own
    rule. ``replaced``: by the plan, the output of step ``last`` takes its place during that step.
    """

    name: str
    bytes: _Count
    first: _Count
    last: _Count
    planned: _Count | None = None
    own: _Count
    replaced: bool = False

    @property
    def until(self) -> int:
        """The last step at which the place is its own."""
        return self.last - self.replaced


class Region(_Record):
    """Operators that are computed in strips: the steps from ``first`` to ``last`` inclusive.

    ``start``, ``end``: the layers of the first and the last of them.
    """

    first: _Count
    last: _Count
    start: str
    end: str
    strips: Annotated[int, Field(ge=2)]


class MemoryPlan(_Record):
    """The activations of one file in the order of its operators."""

    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    places: tuple[Place, ...]
    regions: tuple[Region, ...] = ()

    @model_validator(mode="after")
    def _within_the_steps(self) -> MemoryPlan:
        spans = [(place.first, place.last) for place in self.places]
        spans += [(region.first, region.last) for region in self.regions]
        if any(not first <= last < len(self.steps) for first, last in spans):
            raise ValueError("an activation or a region is not within the steps")
        return self

    @property
    def alive(self) -> list[int]:
        """The bytes alive during each step."""
        changes = [0] * (len(self.steps) + 1)
        for place in self.places:
            changes[place.first] += place.bytes
            changes[place.until + 1] -= place.bytes
        return list(accumulate(changes))[:-1]

    @property
    def peak(self) -> int:
        """The most bytes alive at one time: no plan takes fewer.

        Where the file holds a plan, an output may be written over an input.
        """
        return max(self.alive)

    @property
    def peak_steps(self) -> tuple[int, ...]:
        """The steps at which that many bytes are alive."""
        alive = self.alive
        return tuple(step for step, size in enumerate(alive) if size == max(alive))

    def at(self, step: int) -> tuple[Place, ...]:
        """The activations that are alive during a step, the largest first."""
        found = (place for place in self.places if place.first <= step <= place.until)
        return tuple(sorted(found, key=lambda place: -place.bytes))

    @property
    def own_bytes(self) -> int:
        """The bytes that the runtime takes by its own rule."""
        return max((place.own + place.bytes for place in self.places), default=0)

    @property
    def planned_bytes(self) -> int | None:
        """The bytes that the plan in the file takes; None without one."""
        ends = [p.planned + p.bytes for p in self.places if p.planned is not None]
        return max(ends) if ends and len(ends) == len(self.places) else None


class MemoryPlans(_Record):
    """The plans of both files. ``runtime``: the one whose own rule is applied."""

    runtime: Literal["tflm", "litert"]
    before: MemoryPlan
    after: MemoryPlan
