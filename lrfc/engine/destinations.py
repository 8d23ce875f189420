"""Destinations of a build: a file format together with the device that it is for."""

from __future__ import annotations

from dataclasses import dataclass

from lrfc.config.build import HOST
from lrfc.config.precision import of
from lrfc.costs import latency
from lrfc.costs.latency import CostProfile
from lrfc.engine.preflight import Goal
from lrfc.errors import UsageError
from lrfc.protocols import Target
from lrfc.targets.catalog import target as target_of
from lrfc.targets.devices import device as devices
from lrfc.targets.devices.device import Device


@dataclass(frozen=True)
class Destination:
    """One file to emit. ``name``: of its output folder where a build has several destinations."""

    target: Target
    device: Device
    threads: int
    name: str

    def profile(self) -> tuple[CostProfile, str | None]:
        """The cost profile to start with, and a note where it is not of this very destination."""
        form, precision = self.target.name, self.target.precision
        own = latency.load(self.device.name, form, precision, self.threads)
        if own is not None:
            return own, _of_another_mode(self.device)
        like = of(precision).like
        near = [
            (self.device.name, precision, 1),
            (self.device.name, like, self.threads),
            (self.device.name, like, 1),
        ]
        for device, other, threads in (
            *near,
            (HOST, precision, 1),
            (HOST, like, 1),
            (HOST, "fp32", 1),
        ):
            other_profile = latency.load(device, form, other, threads)
            if other_profile is not None:
                return other_profile, (
                    f"device '{self.device.name}' has no cost profile for {form} {precision} on"
                    f" {self.threads} threads: predictions start from the profile of {device}"
                    f" {other}, and every measurement corrects them; lrfc devices calibrate"
                    f" {self.device.name} makes its own"
                )
        raise UsageError(
            f"device '{self.device.name}' has no cost profile for {form} {precision}: lrfc devices"
            f" calibrate {self.device.name} makes one"
        )


def destination(goal: Goal) -> Destination:
    """The destination of a goal."""
    target = target_of(goal.format, goal.precision, int8_io=goal.int8_io)
    return Destination(
        target.with_plan() if goal.device.follows_plan else target,
        goal.device,
        goal.threads,
        goal.name,
    )


def _of_another_mode(device: Device) -> str | None:
    """A note for an Ethos-U whose cost profile was computed for another configuration of Vela."""
    path = devices.SHIPPED / f"{device.name}.toml"
    setting = device.connection.setting
    if not setting or not path.is_file() or devices.read(path).connection == device.connection:
        return None
    missing = f"device '{device.name}' has no cost profile for {', '.join(setting)}"
    instead = "its cycles are predicted from the shipped profile, and every measurement corrects it"
    return f"{missing}: where Vela cannot compile an op by itself, {instead}"
