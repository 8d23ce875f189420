"""This machine as a device."""

from __future__ import annotations

from lrfc.targets.device import Device, Local
from lrfc.targets.process import Here
from lrfc.targets.runners.python import PythonRunner


class LocalRunner(PythonRunner):
    """Each file in a fresh child process."""

    def __init__(self, device: Device) -> None:
        assert isinstance(device.reach, Local)
        super().__init__(device, Here(device.reach.python))
