"""How devices are reached, one way a file."""

from __future__ import annotations

import os
import shlex

from lrfc.errors import DeviceError, UsageError
from lrfc.targets.devices.device import ADB, SSH, Analytic, Device, Local, Vela
from lrfc.targets.devices.runners.base import DeviceRunner

#: The environment variable by which the user allows a profile's interpreter on this machine.
INTERPRETER = "LRFC_PYTHON"


def runner(device: Device) -> DeviceRunner:
    """The runner of a device. DeviceError when it has none: nothing can be measured there. UsageError where its profile would run a program here."""
    match device.reach:
        case Local(python=python):
            from lrfc.targets.devices.runners.local import LocalRunner

            if python is not None and python != os.environ.get(INTERPRETER):
                # A profile may come from anybody, and this program would run here, with all that the user may do.
                way_out = f"set {INTERPRETER}={shlex.quote(python)} if you want that, or take the key out"
                asked = f"device '{device.name}': its profile asks to run {python} on this machine (reach.python)"
                raise UsageError(f"{asked}; {way_out}")
            return LocalRunner(device)
        case SSH():
            from lrfc.targets.devices.runners.ssh import SSHRunner

            return SSHRunner(device)
        case ADB():
            from lrfc.targets.devices.runners.adb import adb_runner

            return adb_runner(device)
        case Vela():
            from lrfc.targets.ethos_u.runner import VelaRunner

            return VelaRunner(device)
        case Analytic():
            raise DeviceError(f"device '{device.name}' cannot be measured: it has no runner, its times are computed and called estimated")
