"""This machine as a device."""

from __future__ import annotations

from lrfc.targets.devices.device import Device, Local
from lrfc.targets.devices.process import LocalTransport
from lrfc.targets.devices.runners.python import PythonRunner


class LocalRunner(PythonRunner):
    """Measures on this machine, each file in a fresh child process."""

    def __init__(self, device: Device) -> None:
        assert isinstance(device.connection, Local)
        super().__init__(device, LocalTransport(device.connection.python))
