"""Where a build goes: each file format together with the device that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrfc.errors import UsageError
from lrfc.precision import listed, of
from lrfc.search import latency
from lrfc.search.latency import CostProfile
from lrfc.state import Target
from lrfc.targets import device as devices
from lrfc.targets.catalog import target as target_of
from lrfc.targets.device import Device, Vela
from lrfc.targets.modes import configured

#: The device of a build that names none: the machine that it runs on.
HOST = "host"


@dataclass(frozen=True)
class Destination:
    """One file to make. ``name``: of its output folder where a build makes several."""

    target: Target
    device: Device
    threads: int
    name: str

    def profile(self) -> tuple[CostProfile, str | None]:
        """The prices to begin with, and a note when they are those of another device."""
        form, precision = self.target.name, self.target.precision
        own = latency.load(self.device.name, form, precision, self.threads)
        if own is not None:
            return own, _of_another_mode(self.device)
        like = of(precision).like
        near = [(self.device.name, precision, 1), (self.device.name, like, self.threads), (self.device.name, like, 1)]
        for device, other, threads in (*near, (HOST, precision, 1), (HOST, like, 1), (HOST, "fp32", 1)):
            found = latency.load(device, form, other, threads)
            if found is not None:
                note = f"device '{self.device.name}' has no cost profile for {form} {precision} on {self.threads} threads: prices begin as those of"
                return found, f"{note} {device} {other}, and every measurement corrects them; lrfc devices calibrate {self.device.name} makes its own"
        raise UsageError(
            f"device '{self.device.name}' has no cost profile for {form} {precision}: lrfc devices calibrate {self.device.name} makes one"
        )


def destinations(
    targets: Sequence[str], names: Sequence[str], precision: str | None, threads: int | None, *, int8_io: bool = False, memory_mode: str | None = None,
    system_config: str | None = None,
) -> list[Destination]:  # fmt: skip
    """Every target on every device that runs it, the defaults being those of the device.

    ``int8_io``: int8 inputs and outputs. ``memory_mode``, ``system_config``: of the devices that Vela reaches. UsageError, before any work, when a device is
    unknown, when it runs none of the targets, when it does not compute in that precision, when a target has not that precision or those inputs, and when
    Vela does not know that mode or configuration.
    """
    for name in targets:
        target_of(name)  # an unknown one is named before anything else
    if precision is not None:
        of(precision)
    found = []
    for device in configured([devices.load(name) for name in names or (HOST,)], memory_mode=memory_mode, system_config=system_config):
        formats = [name for name in targets if name in device.formats] if targets else [device.formats[0]]
        if not formats:
            raise UsageError(f"device '{device.name}' runs {' and '.join(device.formats)} files, not {', '.join(targets)}; leave out --target")
        chosen = precision or device.precisions[0]
        if chosen not in device.precisions:
            raise UsageError(f"device '{device.name}' computes in {listed(device.precisions, 'and')}, not in {chosen}; leave out --precision")
        for name in formats:
            label = name if not names else device.name if len(formats) == 1 else f"{device.name}-{name}"
            found.append(Destination(target_of(name, chosen, int8_io=int8_io), device, threads or device.threads, label))
    return found


def _of_another_mode(device: Device) -> str | None:
    """A note for an Ethos-U whose cost profile ships with it, and was computed for another configuration of Vela."""
    place = devices.SHIPPED / f"{device.name}.toml"
    reach = device.reach
    if not isinstance(reach, Vela) or not place.is_file() or devices.read(place).reach == reach:
        return None
    return (
        f"device '{device.name}' has no cost profile for {reach.accelerator}, {reach.system_config}, {reach.memory_mode}: where Vela cannot price an op by"
        " itself, prices begin as those of the profile that ships, and every measurement corrects them"
    )
