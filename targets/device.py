"""What a device is: its runtime, its limits, and how to reach it. Read from TOML, checked before any work."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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
    host: str  #: a name of the ssh config, or [user@]host
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


class Analytic(_Table):
    """A device that cannot be reached: everything about its time is computed from the cost profile and called estimated."""

    kind: Literal["analytic"] = "analytic"
    source: str  #: where the figures come from


Reach = Annotated[Local | SSH | ADB | Vela | Analytic, Field(discriminator="kind")]


class Device(_Table):
    """A device profile.

    ``formats`` and ``precisions``: what it runs, the default first. ``rank_multiple``: ranks step in multiples of this, what the hardware computes at
    once. ``flash_bytes`` and ``ram_bytes``: limits that a file and its activations must keep; None for no limit.
    """

    schema_version: Literal[1] = 1
    name: _Name
    description: str
    formats: Annotated[tuple[Literal["tflite", "onnx"], ...], Field(min_length=1)] = ("tflite",)
    precisions: Annotated[tuple[Literal["fp32", "int8"], ...], Field(min_length=1)] = ("fp32",)
    threads: Annotated[int, Field(ge=1)] = 1
    rank_multiple: Annotated[int, Field(ge=1)] = 1
    flash_bytes: _Bytes | None = None
    ram_bytes: _Bytes | None = None
    reach: Reach = Local()

    @property
    def measured(self) -> bool:
        """Whether a real device is timed: not for compiler estimates and formulas."""
        return self.reach.kind in ("local", "ssh", "adb")
