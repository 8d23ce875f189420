"""Memory modes and system configurations of Vela in place of those of a device's profile."""

from __future__ import annotations

import configparser
from collections.abc import Sequence
from pathlib import Path

from lrfc.errors import UsageError
from lrfc.system import reader
from lrfc.targets.devices.device import INI_BYTES, Device, Vela
from lrfc.targets.imports import place
from lrfc.text import like

#: The name that Vela accepts without any vela.ini.
_DEFAULT = "internal-default"


def configured(
    devices: Sequence[Device], *, memory_mode: str | None = None, system_config: str | None = None
) -> list[Device]:
    """The devices, with another memory mode and system configuration for those of Vela.

    None leaves the profile's. UsageError when none of the devices is one of Vela, and when the
    vela.ini of one has no such name; DependencyError when Vela is not installed.
    """
    changes = {
        name: value
        for name, value in (("memory_mode", memory_mode), ("system_config", system_config))
        if value is not None
    }
    if not changes:
        return list(devices)
    if not any(isinstance(device.connection, Vela) for device in devices):
        flags = ", ".join(f"{_flag(name)} {value}" for name, value in changes.items())
        names = ", ".join(device.name for device in devices)
        raise UsageError(
            f"{flags}: Vela reaches no device of this call ({names}); name an Ethos-U, such as"
            " --device ethos-u55-128"
        )
    return [
        _changed(device, device.connection, changes)
        if isinstance(device.connection, Vela)
        else device
        for device in devices
    ]


def _changed(device: Device, connection: Vela, changes: dict[str, str]) -> Device:
    """The device with those settings; UsageError when its vela.ini has no such name."""
    path = (
        connection.config_file
        or place("ethosu", "'lrfc[npu]'") / "config_files" / "Arm" / "vela.ini"
    )
    sections = _sections(path)
    for name, value in changes.items():
        # A section of vela.ini is called Memory_Mode.Shared_Sram, the key memory_mode.
        known = [
            _DEFAULT,
            *(
                section.partition(".")[2]
                for section in sections
                if section.partition(".")[0].lower() == name
            ),
        ]
        if value not in known:
            raise UsageError(
                f"{_flag(name)} {value}: {path} has none of that name{like(value, known)}; it has"
                f" {', '.join(known[1:])}"
            )
    return device.model_copy(update={"connection": connection.model_copy(update=changes)})


def _sections(path: Path) -> list[str]:
    """The sections of a vela.ini; UsageError when it is none."""
    origin = "it is the key connection.config of the device's profile"
    if reader.kind(path) is None:
        raise UsageError(f"{path}: no such vela.ini; {origin}")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(reader.contents(path, limit=INI_BYTES).decode())
    except (configparser.Error, ValueError) as error:
        raise UsageError(
            f"{path} is no vela.ini: {reader.shown(str(error).splitlines()[0])}; {origin}"
        ) from error
    return parser.sections()


def _flag(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"
