"""What a device is: its runtime, its limits, and how to reach it. Read from TOML, checked before any work."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrfc import files
from lrfc.errors import UsageError
from lrfc.precision import Name

SCHEMA = Path(__file__).with_name("device.schema.json")
SHIPPED = Path(__file__).with_name("devices")

_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
_Bytes = Annotated[int, Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Local(_Table):
    """This machine: each file in a fresh process of Python."""

    kind: Literal["local"] = "local"
    python: str | None = None  #: another interpreter than the one that runs lrfc


class SSH(_Table):
    """A machine with Python and the runtime, over the system's OpenSSH client: its config, agent and jump hosts hold."""

    kind: Literal["ssh"] = "ssh"
    host: Annotated[str, Field(pattern=r"^[^-\s]\S*$")]  #: a name of the ssh config, or [user@]host
    port: Annotated[int, Field(gt=0, lt=65536)] | None = None
    python: str = "python3"
    folder: str = "/tmp"  # noqa: S108 #: where a folder of our own is made there, and removed
    options: tuple[str, ...] = ()  #: further options of ssh, as in ``-o Name=value``
    connect_timeout: Annotated[float, Field(gt=0)] = 10.0  #: seconds


class ADB(_Table):
    """An Android device over adb: Python there (Termux), or the benchmark_model program of TensorFlow Lite pushed to it."""

    kind: Literal["adb"] = "adb"
    serial: str | None = None  #: which device, where several are connected
    python: str | None = None  #: Python on the device; None takes benchmark_model
    benchmark_model: str | None = None  #: path, on this machine, of the program built for the device
    folder: str = "/data/local/tmp"


class Vela(_Table):
    """An Arm Ethos-U, as Arm's Vela compiler estimates it: cycles and memory are exact for Vela, and no time of a real device."""

    kind: Literal["vela"] = "vela"
    accelerator: str  #: as in ``vela --accelerator-config``
    system_config: str = "internal-default"
    memory_mode: str = "internal-default"
    config: str | None = None  #: a vela.ini; None takes the one that comes with Vela

    @property
    def config_file(self) -> Path | None:
        """The place of ``config``."""
        return None if self.config is None else Path(self.config).expanduser().absolute()


class Analytic(_Table):
    """A device that cannot be reached: everything about its time is computed from the cost profile and called estimated."""

    kind: Literal["analytic"] = "analytic"
    source: str  #: where the figures come from


Reach = Annotated[Local | SSH | ADB | Vela | Analytic, Field(discriminator="kind")]


class Device(_Table):
    """A device profile.

    ``formats`` and ``precisions``: what it runs, the default first. ``machine``: the architecture that it must say it has ('aarch64'); None for any.
    ``rank_multiple``: ranks step in multiples of this, what the hardware computes at
    once. ``flash_bytes`` and ``ram_bytes``: limits that a file and its activations must keep; None for no limit.
    """

    schema_version: Literal[1] = 1
    name: _Name
    description: str
    formats: Annotated[tuple[Literal["tflite", "onnx"], ...], Field(min_length=1)] = ("tflite",)
    precisions: Annotated[tuple[Name, ...], Field(min_length=1)] = ("fp32",)
    threads: Annotated[int, Field(ge=1)] = 1
    rank_multiple: Annotated[int, Field(ge=1)] = 1
    flash_bytes: _Bytes | None = None
    ram_bytes: _Bytes | None = None
    machine: str | None = None
    reach: Reach = Local()

    @property
    def measured(self) -> bool:
        """Whether a real device is timed: not for compiler estimates and formulas."""
        return self.reach.kind in ("local", "ssh", "adb")

    @property
    def rounds_like_reference(self) -> bool:
        """Whether integers are rounded there as LiteRT's reference kernels do: on an Ethos-U, and by CMSIS-NN on a microcontroller."""
        return self.reach.kind in ("vela", "analytic")


def own_folder() -> Path:
    """Where the user's profiles are."""
    return platformdirs.user_config_path("lrfc", appauthor=False) / "devices"


def load(name: str | Path) -> Device:
    """The profile of that name, or in that .toml file. The user's wins over one that ships. UsageError when there is none, or it is not valid."""
    return read(path_of(name))


def path_of(name: str | Path) -> Path:
    """The file of the profile of that name."""
    if str(name).endswith(".toml"):
        return Path(name)
    found = _files()
    if str(name) not in found:
        raise UsageError(f"unknown device '{name}'{like(str(name), list(found))}; known are {', '.join(sorted(found))}, and any .toml file")
    return found[str(name)]


def known() -> list[tuple[str, Path, Device]]:
    """Name, file and profile of every device, by name."""
    return [(name, path, read(path)) for name, path in sorted(_files().items())]


def add(path: Path, *, force: bool = False) -> Path:
    """Check a profile and copy it into the user's folder, whole or not at all; gives the new file. One that is there is replaced only with ``force``."""
    device = read(path)
    place = own_folder() / f"{device.name}.toml"
    if place.exists() and not force:
        raise UsageError(f"{place} exists: device '{device.name}' is known; give another name in {path}, or --force to replace it")
    return files.write(place, path.read_bytes(), parents=True, way_out=files.CONFIG)


def read(path: Path) -> Device:
    """The profile in a file; UsageError, in one line, with the file, the key, its value and the way out."""
    try:
        table = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise UsageError(f"{path}: no such device profile can be read ({error.strerror}); lrfc devices list shows those known") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    try:
        return Device.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"{path}: {_problem(error, table)}") from error


def _files() -> dict[str, Path]:
    return {path.stem: path for folder in (SHIPPED, own_folder()) for path in sorted(folder.glob("*.toml"))}


def _problem(error: ValidationError, table: dict[str, Any]) -> str:
    """The first problem: key, value, and what would do."""
    problem = error.errors()[0]
    # Inside a tagged union the tag stands in the location; it is no key of the file.
    loc = [part for number, part in enumerate(problem["loc"]) if not (number == 1 and problem["loc"][0] == "reach")]
    key, value = ".".join(map(str, loc)), problem.get("input")
    match problem["type"]:
        case "missing":
            return f"the key '{key}' is missing"
        case "union_tag_not_found":
            return f"the key '{key}.kind' is missing; it is one of {', '.join(_KINDS)}"
        case "union_tag_invalid":
            return f"{key}.kind = {value['kind']!r}: it is one of {', '.join(_KINDS)}{like(str(value['kind']), list(_KINDS))}"
        case "extra_forbidden":
            kind = table["reach"].get("kind") if len(loc) > 1 and isinstance(table.get("reach"), dict) else None
            keys = list(_KINDS.get(str(kind), Device).model_fields)
            return f"unknown key '{key}' (= {value!r}){like(str(loc[-1]), keys)}; known here are {', '.join(keys)}"
        case _:
            return f"{key} = {value!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def like(word: str, words: list[str]) -> str:
    """': did you mean …?' for the word nearest to one that is not among them; nothing where none is near."""
    close = difflib.get_close_matches(word, words, 1)
    return f": did you mean '{close[0]}'?" if close else ""


_KINDS: dict[str, type[_Table]] = {"local": Local, "ssh": SSH, "adb": ADB, "vela": Vela, "analytic": Analytic}


def schema_text() -> str:
    """The content of device.schema.json: the JSON Schema of a profile (``python -m lrfc.targets.device`` writes that file)."""
    return json.dumps(
        {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Device.model_json_schema() | {"title": "lrfc device profile"}, indent=2
    ) + "\n"  # fmt: skip


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
