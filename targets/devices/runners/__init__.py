"""How devices are reached, one way a file. ``lrfc.targets.devices.connections`` lists the ways."""

from __future__ import annotations

from lrfc.targets.devices.connections import INTERPRETER
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.runners.base import DeviceRunner

__all__ = ["INTERPRETER", "runner"]


def runner(device: Device) -> DeviceRunner:
    """The runner of a device.

    DeviceError when it has none: nothing can be measured there. UsageError where its profile would
    run a program here.
    """
    return device.connection.open(device)
