"""The runners of devices, one a file. A connection names its own."""

from __future__ import annotations

from importlib import import_module

from lrfc.errors import DeviceError
from lrfc.targets.devices.connections import INTERPRETER
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.runners.base import DeviceRunner

__all__ = ["INTERPRETER", "runner"]


def runner(device: Device) -> DeviceRunner:
    """Return the runner of a device.

    DeviceError when it has none: nothing can be measured there. UsageError where its profile would
    run a program on this machine.
    """
    module, _, name = device.connection.runner.partition(":")
    if not module:
        why = "it has no runner, its times are computed and called estimated"
        raise DeviceError(f"device '{device.name}' cannot be measured: {why}")
    opened: DeviceRunner = getattr(import_module(module), name)(device)
    return opened
