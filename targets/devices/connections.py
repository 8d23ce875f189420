"""Kinds of connections to a device: the table ``[connection]`` of its profile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from lrfc.metrics.source import COMPILED, ESTIMATED, MEASURED, Source
from lrfc.system import reader
from lrfc.targets.devices.ssh_options import known_option

#: Bytes that a vela.ini may have.
INI_BYTES = 1 << 20
#: The environment variable by which the user allows a profile's interpreter on this machine.
INTERPRETER = "LRFC_PYTHON"

#: A path, on the device or this machine, or a word of a command. It is printable, so that a message
#: shows all of it.
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1000)]
#: The user's ssh config may pass an option, like the host, to commands.
_Option = Annotated[str, AfterValidator(known_option)]


class Table(BaseModel):
    """A table of a profile."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Need(NamedTuple):
    """A program or package that a connection needs on this machine, and its source."""

    name: str
    source: str


class Connection(Table):
    """A kind of connection.

    Its fields are the keys of the table; its class variables are its capabilities.
    """

    #: The source of the figures of such a device.
    figures: ClassVar[Source] = MEASURED
    #: Whether the device rounds integers as LiteRT's reference kernels do.
    rounds_like_reference: ClassVar[bool] = False
    #: Whether the runtime places activations by the plan that a file holds.
    follows_plan: ClassVar[bool] = False
    #: Whether the compiler of an accelerator places activations, whatever the file's tensors are.
    compiled: ClassVar[bool] = False
    #: Whether TensorFlow Lite Micro on this machine tells the memory that a file takes there.
    measures_arena: ClassVar[bool] = False
    #: Whether the runner reports the cycles of single ops: it is an OpRunner of runners/base.py.
    tells_ops: ClassVar[bool] = False
    #: The reason why there is nothing to calibrate, for a device whose figures are not measured.
    not_timed: ClassVar[str] = ""
    #: The program that it needs, and the software that contains it.
    program: ClassVar[Need | None] = None
    #: The distribution that it needs, and the extra of lrfc that installs it.
    package: ClassVar[Need | None] = None
    #: A remark on such devices for ``lrfc doctor``.
    remark: ClassVar[str] = ""

    #: The runner of such a device, as 'module:callable'; it is called with the device. Empty where
    #: nothing can be measured.
    runner: ClassVar[str] = ""

    kind: str

    @property
    def setting(self) -> tuple[str, ...]:
        """The values that a computed cost profile depends on; empty where none is computed."""
        return ()

    @property
    def configuration(self) -> str:
        """Everything that the figures depend on, except the version of the runtime."""
        return ""


class Local(Connection):
    """This machine: each file runs in a fresh Python process."""

    runner: ClassVar[str] = "lrfc.targets.devices.runners.local:LocalRunner"

    kind: Literal["local"] = "local"
    #: another interpreter than the one that runs lrfc; run only where the environment variable
    #: LRFC_PYTHON says the same
    python: Text | None = None


class SSH(Connection):
    """A machine with Python and the runtime, over the system's OpenSSH client.

    The user's ssh config, agent and jump hosts apply.
    """

    runner: ClassVar[str] = "lrfc.targets.devices.runners.ssh:SSHRunner"
    program: ClassVar[Need | None] = Need(
        "ssh",
        "OpenSSH's client (Debian: apt-get install openssh-client)",
    )

    kind: Literal["ssh"] = "ssh"
    #: a name of the ssh config, or [user@]host
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+:%@-]*$", max_length=300)]
    port: Annotated[int, Field(gt=0, lt=65536)] | None = None
    python: Text = "python3"
    #: where a folder for our files is made on the device, and removed at the end
    folder: Text = "/tmp"  # noqa: S108
    #: further options of ssh, as in ``-o Name=value``, that run and write nothing on this machine
    options: Annotated[tuple[_Option, ...], Field(max_length=100)] = ()
    connect_timeout: Annotated[float, Field(gt=0, le=3600)] = 10.0  #: seconds


class ADB(Connection):
    """An Android device over adb.

    With Python there (Termux), or with TensorFlow Lite's program benchmark_model, which is sent to
    it.
    """

    runner: ClassVar[str] = "lrfc.targets.devices.runners.adb:adb_runner"
    program: ClassVar[Need | None] = Need(
        "adb",
        "Android's platform-tools (Debian: apt-get install adb)",
    )

    kind: Literal["adb"] = "adb"
    serial: Text | None = None  #: which device, where several are connected
    python: Text | None = None  #: Python on the device; without it benchmark_model runs there
    #: path on this machine of the program, built for the device
    benchmark_model: Text | None = None
    folder: Text = "/data/local/tmp"


class Vela(Connection):
    """An Arm Ethos-U, as Arm's Vela compiler estimates it.

    Cycles and memory are those of Vela's model; no real device is timed.
    """

    runner: ClassVar[str] = "lrfc.targets.ethos_u.runner:VelaRunner"
    figures: ClassVar[Source] = COMPILED
    rounds_like_reference: ClassVar[bool] = True
    compiled: ClassVar[bool] = True
    tells_ops: ClassVar[bool] = True
    not_timed: ClassVar[str] = "Vela computes the cycles of each op"
    package: ClassVar[Need | None] = Need("ethos-u-vela", "npu")

    kind: Literal["vela"] = "vela"
    accelerator: Text  #: as in ``vela --accelerator-config``
    system_config: Text = "internal-default"
    memory_mode: Text = "internal-default"
    config: Text | None = None  #: a vela.ini; without it the one that comes with Vela
    #: As in ``vela --arena-cache-size``: the SRAM that Vela tries not to exceed, bytes.
    arena_cache_bytes: Annotated[int, Field(gt=0, lt=2**31)] | None = None
    optimise: Literal["Performance", "Size"] = "Performance"  #: as in ``vela --optimise``

    @property
    def config_file(self) -> Path | None:
        """The path of ``config``."""
        return None if self.config is None else reader.located(self.config).absolute()

    @property
    def setting(self) -> tuple[str, ...]:
        """Accelerator, system configuration and memory mode."""
        return self.accelerator, self.system_config, self.memory_mode

    @property
    def configuration(self) -> str:
        """Everything that Vela's figures depend on, except its version.

        A vela.ini is represented by its SHA-256, since it may change.
        """
        file = self.config_file
        digest = ""
        if file is not None:
            digest = hashlib.sha256(reader.contents(file, limit=INI_BYTES)).hexdigest()
        memory = "" if self.arena_cache_bytes is None else f"{self.arena_cache_bytes} B"
        optimise = "" if self.optimise == "Performance" else self.optimise
        return " ".join(filter(None, (*self.setting, digest, memory, optimise)))


class Analytic(Connection):
    """A microcontroller without a connection.

    Its times are estimated, by its cost profile; the arena of a file is measured on this machine.
    """

    figures: ClassVar[Source] = ESTIMATED
    rounds_like_reference: ClassVar[bool] = True  # CMSIS-NN on a microcontroller
    follows_plan: ClassVar[bool] = True  # TensorFlow Lite Micro
    measures_arena: ClassVar[bool] = True
    not_timed: ClassVar[str] = "its times are computed"
    remark: ClassVar[str] = (
        "times are computed from published figures, never measured; memory is measured by"
        " TensorFlow Lite Micro, with pip install 'lrfc[micro]'"
    )

    kind: Literal["analytic"] = "analytic"
    source: str  #: the source of the figures


#: ``kind`` → connection. A new one is one line here.
CONNECTIONS: dict[str, type[Connection]] = {
    "local": Local,
    "ssh": SSH,
    "adb": ADB,
    "vela": Vela,
    "analytic": Analytic,
}


class ByKind:
    """The annotation of a field with a table of CONNECTIONS, whose class its ``kind`` decides."""

    def __get_pydantic_core_schema__(
        self,
        source: Any,
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        shipped = dict(CONNECTIONS)
        choices = {kind: handler.generate_schema(table) for kind, table in shipped.items()}

        def read(value: Any, validate: Callable[[Any], Any]) -> Any:
            if isinstance(value, Connection):
                return value
            kind = value.get("kind") if isinstance(value, dict) else None
            added = CONNECTIONS.get(kind) if isinstance(kind, str) else None
            if added is None or added is shipped.get(str(kind)):
                return validate(value)
            # As a union of one, so that the errors name the place as those of the shipped kinds do.
            choice = {str(kind): added.__pydantic_core_schema__}
            alone = core_schema.tagged_union_schema(choice, discriminator="kind")
            return SchemaValidator(alone).validate_python(value)

        return core_schema.no_info_wrap_validator_function(
            read,
            core_schema.tagged_union_schema(choices, discriminator="kind"),
            serialization=core_schema.plain_serializer_function_ser_schema(BaseModel.model_dump),
        )
