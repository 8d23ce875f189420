"""Device profiles: runtime, limits and connection of a device, read from TOML and validated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AliasChoices, Field, ValidationError

from lrfc.config.formats import Form
from lrfc.config.precision import Name
from lrfc.errors import UsageError
from lrfc.metrics.source import ESTIMATED, MEASURED
from lrfc.system import files, reader
from lrfc.targets.devices.connections import (
    ADB,
    CONNECTIONS,
    INI_BYTES,
    SSH,
    Analytic,
    ByKind,
    Connection,
    Local,
    Table,
    Text,
    Vela,
)
from lrfc.text import like

__all__ = [
    "ADB",
    "INI_BYTES",
    "SSH",
    "Analytic",
    "Connection",
    "Device",
    "Local",
    "Vela",
    "add",
    "known",
    "load",
    "own_folder",
    "path_of",
    "read",
]

SCHEMA = Path(__file__).with_name("device.schema.json")
SHIPPED = Path(__file__).with_name("profiles")
#: The name of the table of the connection, and its former name, which is read as well.
TABLES = ("connection", "reach")
#: Bytes that a profile may have.
PROFILE_BYTES = 1 << 20

_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
_Bytes = Annotated[int, Field(gt=0, lt=2**63)]


class Device(Table):
    """A device profile.

    ``formats`` and ``precisions``: those that it runs, the default first. ``machine``: the
    architecture that it has to report ('aarch64'); any by default. ``rank_multiple``: ranks are
    multiples of this, the vector width of the hardware. ``flash_bytes`` and ``ram_bytes``: limits
    of a file and its activations; none by default. ``growth_bytes``: the activation memory that a
    build may add to the original's where the user sets no limit.
    """

    schema_version: Literal[1] = 1
    name: _Name
    description: str
    formats: Annotated[tuple[Form, ...], Field(min_length=1)] = ("tflite",)
    precisions: Annotated[tuple[Name, ...], Field(min_length=1)] = ("fp32",)
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    rank_multiple: Annotated[int, Field(ge=1, le=65536)] = 1
    flash_bytes: _Bytes | None = None
    ram_bytes: _Bytes | None = None
    growth_bytes: Annotated[int, Field(ge=0, lt=2**63)] = 0
    machine: Text | None = None
    connection: Annotated[Connection, ByKind()] = Field(
        default=Local(), validation_alias=AliasChoices(*TABLES)
    )

    @property
    def measured(self) -> bool:
        """Whether a real device is timed, in contrast to compiler estimates and formulas."""
        return self.connection.figures == MEASURED

    @property
    def estimated(self) -> bool:
        """Whether nothing runs on the device: every time is computed from a cost profile."""
        return self.connection.figures == ESTIMATED

    @property
    def tells_ops(self) -> bool:
        """Whether its runner reports the cycles of single ops."""
        return self.connection.tells_ops

    @property
    def measures_arena(self) -> bool:
        """Whether TensorFlow Lite Micro on this machine tells the memory that a file takes."""
        return self.connection.measures_arena

    @property
    def rounds_like_reference(self) -> bool:
        """Whether the device rounds integers as LiteRT's reference kernels do.

        An Ethos-U does, and CMSIS-NN on a microcontroller.
        """
        return self.connection.rounds_like_reference

    @property
    def follows_plan(self) -> bool:
        """Whether the runtime places activations by the memory plan that a file holds."""
        return self.connection.follows_plan

    @property
    def compiled(self) -> bool:
        """Whether the compiler of an accelerator places activations."""
        return self.connection.compiled

    @property
    def processor(self) -> bool:
        """Whether LiteRT or onnxruntime runs files on a processor, and places activations."""
        return not self.compiled and not self.follows_plan


def own_folder() -> Path:
    """The folder of the user's profiles."""
    return platformdirs.user_config_path("lrfc", appauthor=False) / "devices"


def load(name: str | Path) -> Device:
    """Read the profile of that name, or in that .toml file.

    One of the user's goes before one that ships. UsageError when there is none, or it is not valid.
    """
    return read(path_of(name))


def path_of(name: str | Path) -> Path:
    """The file of the profile of that name; a .toml file is its own."""
    if str(name).endswith(".toml"):
        return Path(name)
    paths = _files()
    if str(name) not in paths:
        raise UsageError(
            f"unknown device '{reader.shown(name)}'{like(str(name), list(paths))}; known are"
            f" {', '.join(sorted(paths))}, and any .toml file"
        )
    return paths[str(name)]


def known() -> list[tuple[str, Path, Device]]:
    """Name, file and profile of every device, by name."""
    return [(name, path, read(path)) for name, path in sorted(_files().items())]


def add(path: Path, *, force: bool = False) -> Path:
    """Validate a profile and copy it into the user's folder; return the path of the copy.

    An existing one is replaced only with ``force``. The copy is written whole or not at all.
    """
    content = reader.contents(path, limit=PROFILE_BYTES)
    device = _parsed(content, path)
    place = own_folder() / f"{device.name}.toml"
    if place.exists() and not force:
        raise UsageError(
            f"{place} exists: device '{device.name}' is known; give another name in {path}, or"
            " --force to replace it"
        )
    return files.write(place, content, parents=True, way_out=files.CONFIG)


def read(path: Path) -> Device:
    """Read the profile in a file.

    UsageError, in one line, with the file, the key, its value and the way out.
    """
    if reader.kind(path) is None:
        raise UsageError(
            f"{reader.shown(path)}: no such device profile; lrfc devices list shows those known"
        )
    return _parsed(reader.contents(path, limit=PROFILE_BYTES), path)


def _parsed(content: bytes, path: Path) -> Device:
    table = reader.toml_table(content, reader.shown(path))
    if table.keys() >= set(TABLES):
        current, former = TABLES
        raise UsageError(
            f"{reader.shown(path)}: the key '{former}' is the former name of '{current}', and both"
            f" are there: take '{former}' out"
        )
    try:
        return Device.model_validate(table)
    except ValidationError as error:
        raise UsageError(
            f"{reader.shown(path)}: {reader.shown(_problem(error, table), 1500)}"
        ) from error


def _files() -> dict[str, Path]:
    """Name → file of every profile; the user's replace those that ship."""
    return {
        path.stem: path
        for folder in (SHIPPED, own_folder())
        for path in sorted(folder.glob("*.toml"))
    }


def _problem(error: ValidationError, table: dict[str, Any]) -> str:
    """The first problem: the key, its value, and the values that are allowed."""
    problem = error.errors()[0]
    # Inside a tagged union the tag is part of the location; it is no key of the file.
    loc = [
        part
        for number, part in enumerate(problem["loc"])
        if not (number == 1 and problem["loc"][0] in TABLES)
    ]
    key, value = ".".join(map(str, loc)), problem.get("input")
    match problem["type"]:
        case "missing":
            return f"the key '{key}' is missing"
        case "union_tag_not_found":
            return f"the key '{key}.kind' is missing; it is one of {', '.join(CONNECTIONS)}"
        case "union_tag_invalid":
            kind = value["kind"]
            known = ", ".join(CONNECTIONS)
            return f"{key}.kind = {kind!r}: it is one of {known}{like(str(kind), CONNECTIONS)}"
        case "extra_forbidden":
            parent = table.get(str(loc[0])) if len(loc) > 1 else None
            kind = parent.get("kind") if isinstance(parent, dict) else None
            keys = list(CONNECTIONS.get(str(kind), Device).model_fields)
            return (
                f"unknown key '{key}' (= {value!r}){like(str(loc[-1]), keys)}; known here are"
                f" {', '.join(keys)}"
            )
        case _:
            reason = problem["msg"].removeprefix("Value error, ")
            return f"{key} = {value!r}: {reason[0].lower()}{reason[1:]}"


def schema_text() -> str:
    """The JSON Schema of a profile, which is the content of device.schema.json.

    ``python -m lrfc.targets.devices.device`` writes that file.
    """
    return (
        json.dumps(
            {"$schema": "https://json-schema.org/draft/2020-12/schema"}
            | Device.model_json_schema()
            | {"title": "lrfc device profile"},
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
