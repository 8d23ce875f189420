"""How devices are reached, one way a file."""

from __future__ import annotations

from lrfc.errors import DeviceError
from lrfc.targets.device import ADB, SSH, Analytic, Device, Local, Vela
from lrfc.targets.runners.base import DeviceRunner


def runner(device: Device) -> DeviceRunner:
    """The runner of a device. DeviceError when it has none: nothing can be measured there."""
    match device.reach:
        case Local():
            from lrfc.targets.runners.local import LocalRunner

            return LocalRunner(device)
        case SSH():
            from lrfc.targets.runners.ssh import SSHRunner

            return SSHRunner(device)
        case ADB():
            from lrfc.targets.runners.adb import adb_runner

            return adb_runner(device)
        case Vela():
            from lrfc.targets.runners.vela import VelaRunner

            return VelaRunner(device)
        case Analytic():
            raise DeviceError(f"device '{device.name}' cannot be measured: it has no runner, its times are computed and called estimated")
