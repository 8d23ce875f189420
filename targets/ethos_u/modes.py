"""The memory modes and system configurations that Vela knows by its vela.ini, in the place of those of a device's profile."""

from __future__ import annotations

import configparser
from collections.abc import Sequence
from pathlib import Path

from lrfc.errors import UsageError
from lrfc.nearest import like
from lrfc.system import reader
from lrfc.targets.devices.device import INI_BYTES, Device, Vela
from lrfc.targets.imports import place

#: What Vela takes without any vela.ini.
_DEFAULT = "internal-default"


def configured(
    devices: Sequence[Device], *, memory_mode: str | None = None, system_config: str | None = None
) -> list[Device]:
    """The devices, those that Vela reaches with this memory mode and this system configuration; None leaves what the profile says.

    UsageError when Vela reaches none of them, and when the vela.ini of one has no such name;
    DependencyError when Vela is not installed.
    """
    chosen = {
        name: value
        for name, value in (("memory_mode", memory_mode), ("system_config", system_config))
        if value is not None
    }
    if not chosen:
        return list(devices)
    if not any(isinstance(each.connection, Vela) for each in devices):
        given, names = (
            ", ".join(each)
            for each in (
                [f"{_flag(name)} {value}" for name, value in chosen.items()],
                [each.name for each in devices],
            )
        )
        raise UsageError(
            f"{given}: Vela reaches no device of this call ({names}); name an Ethos-U, such as"
            " --device ethos-u55-128"
        )
    return [
        _configured(each, each.connection, chosen) if isinstance(each.connection, Vela) else each
        for each in devices
    ]


def _configured(device: Device, connection: Vela, chosen: dict[str, str]) -> Device:
    path = (
        connection.config_file
        or place("ethosu", "'lrfc[npu]'") / "config_files" / "Arm" / "vela.ini"
    )
    sections = _sections(path)
    for name, value in chosen.items():
        # Its sections are called Memory_Mode.Shared_Sram, its keys memory_mode.
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
    return device.model_copy(update={"connection": connection.model_copy(update=chosen)})


def _sections(path: Path) -> list[str]:
    what = "it is the key connection.config of the device's profile"
    if reader.kind(path) is None:
        raise UsageError(f"{path}: no such vela.ini; {what}")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(reader.contents(path, limit=INI_BYTES).decode())
    except (configparser.Error, ValueError) as error:
        raise UsageError(
            f"{path} is no vela.ini: {reader.shown(str(error).splitlines()[0])}; {what}"
        ) from error
    return parser.sections()


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
