"""The runners of devices, one a file. ``lrfc.targets.devices.connections`` opens them."""

from __future__ import annotations

from lrfc.targets.devices.connections import INTERPRETER
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.runners.base import DeviceRunner

__all__ = ["INTERPRETER", "runner"]


def runner(device: Device) -> DeviceRunner:
    """Return the runner of a device.

    DeviceError when it has none: nothing can be measured there. UsageError where its profile would
    run a program on this machine.
    """
    return device.connection.open(device)
