"""This machine as a device."""

from __future__ import annotations

import os
import shlex

from lrfc.errors import UsageError
from lrfc.targets.devices.connections import INTERPRETER
from lrfc.targets.devices.device import Device, Local
from lrfc.targets.devices.process import LocalTransport
from lrfc.targets.devices.runners.python import PythonRunner


class LocalRunner(PythonRunner):
    """Measures on this machine, each file in a fresh child process.

    UsageError for an interpreter that the user has not allowed.
    """

    def __init__(self, device: Device) -> None:
        assert isinstance(device.connection, Local)
        python = device.connection.python
        if python is not None and python != os.environ.get(INTERPRETER):
            # A profile may come from anybody, and this program would run here with the rights of
            # the user.
            problem = f"its profile asks to run {python} on this machine (connection.python)"
            way_out = f"set {INTERPRETER}={shlex.quote(python)} if you want that"
            raise UsageError(f"device '{device.name}': {problem}; {way_out}, or take the key out")
        super().__init__(device, LocalTransport(python))
