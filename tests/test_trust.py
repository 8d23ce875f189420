"""Files with settings that only the user may set.

They are refused before anything is run, read or written, and accepted once the user sets the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from lrfc.cli import app as cli
from lrfc.config import trust
from lrfc.config.resolve import resolve
from lrfc.engine.replay import Locked
from lrfc.errors import DeviceError, UsageError
from lrfc.results.report import page
from lrfc.targets.devices import device
from lrfc.targets.devices.device import SSH, Device, Local
from lrfc.targets.devices.runners import INTERPRETER, runner
from lrfc.targets.devices.ssh_options import known_option
from tests.report_pages import made

CANARY = "canary"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in a new folder with a module that leaves a file when imported, and check for none."""
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(f"open({CANARY!r}, 'w').close()\ndef f(*a):\n    return 1.0\n")
    yield
    assert not Path(CANARY).exists(), "code of a file was run"
    assert "evil" not in sys.modules


#: What a file may not say, and the flag that says it.
ASKED: list[tuple[dict[str, Any], str]] = [
    ({"data": "evil:f"}, "--data evil:f"),
    ({"test_data": "evil:f"}, "--test-data evil:f"),
    ({"metric": "evil:f"}, "--metric evil:f"),
    ({"metric": "evil:f:min"}, "--metric evil:f:min"),
    ({"metric": "evil:min"}, "--metric evil:min"),
    ({"device": ("./mine.toml",)}, "--device ./mine.toml"),
    ({"device": ("host", "mine.toml")}, "--device mine.toml"),
]


def toml(options: dict[str, Any]) -> str:
    return "\n".join(
        f"{name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}"
        for name, value in options.items()
    )


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        *ASKED,
        ({"unsafe_load": True}, "--unsafe-load"),
        ({"out": "/elsewhere/x"}, "--out /elsewhere/x"),
        ({"log_dir": "/elsewhere/x"}, "--log-dir /elsewhere/x"),
    ],
)
def test_a_file_in_the_current_folder_is_data(options: dict[str, Any], flag: str) -> None:
    Path("lrfc.toml").write_text(toml(options))
    with pytest.raises(UsageError) as caught:
        resolve({}, None, {})
    assert str(caught.value).startswith("lrfc.toml: ")
    assert str(caught.value).endswith(
        f"which a file may not decide; to allow it, set it yourself: {flag}"
    )
    assert resolve(options, None, {})[next(iter(options))].source == "flag"
    text = {
        name: ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in options.items()
    }
    given = {f"LRFC_BUILD_{name.upper()}": value for name, value in text.items()}
    assert resolve({}, None, given)[next(iter(options))].source.startswith("environment")
    done = CliRunner().invoke(cli.app, ["build", "model.keras"])
    assert done.exit_code == 2


@pytest.mark.parametrize(("options", "flag"), [*ASKED, ({"unsafe_load": True}, "--unsafe-load")])
def test_so_is_a_file_that_is_named(options: dict[str, Any], flag: str) -> None:
    Path("mine.toml").write_text(toml(options))
    with pytest.raises(UsageError, match="which a file may not decide"):
        resolve({}, Path("mine.toml"), {})


def test_a_file_that_is_named_may_say_where_the_output_goes() -> None:
    Path("mine.toml").write_text(
        'out = "there"\ndata = "digits"\ndevice = "host"\nmetric = "mse"\nunsafe_load = false\n'
    )
    assert resolve({}, Path("mine.toml"), {})["out"].value == "there"


@pytest.mark.parametrize(
    ("options", "flag"), ASKED[:-1]
)  # of several devices a manifest takes its own one
def test_a_manifest_is_data(options: dict[str, Any], flag: str) -> None:
    config = {{"device": "devices"}.get(name, name): value for name, value in options.items()} | {
        "out": "/elsewhere/x",
        "unsafe_load": True,
    }
    made(config=config).write(Path())
    locked = Locked.read(Path())
    with pytest.raises(UsageError, match="which a file may not decide") as caught:
        locked.options({"device": "host"} if "device" not in options else {})
    assert str(caught.value).endswith(flag)
    found = locked.options({"device": "host"} | options)
    assert {"out", "unsafe_load"} & set(found) == set(), "they are the user's alone"


def test_a_manifest_names_no_device_by_its_path() -> None:
    made(device="evil.toml", config={}).write(Path())
    with pytest.raises(UsageError, match=r"it names a device by its path.*--device evil\.toml"):
        Locked.read(Path()).options({})


def test_ordinary_options_are_no_concern() -> None:
    trust.refuse(
        {
            "data": "data/train.npz",
            "metric": "accuracy",
            "device": ("host",),
            "unsafe_load": False,
            "out": None,
        },
        "x",
    )


# -- device profiles -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        "ProxyCommand=touch canary", "proxycommand touch canary", "-oProxyCommand=touch canary",
        "-o ProxyCommand = touch canary", "LocalCommand=x", "PermitLocalCommand=yes",
        "KnownHostsCommand=x", "Match exec touch", "Include x", "ProxyUseFdpass=yes",
        "PKCS11Provider=x.so", "SecurityKeyProvider=x.so", "ProxyJump=x",
        "UserKnownHostsFile=~/.bashrc", "ControlPath=x", "IdentityAgent=x", "SendEnv=*",
        "XAuthLocation=x", "StrictHostKeyChecking=no", "StrictHostKeyChecking accept-new",
        "UpdateHostKeys=yes", "User=$(touch canary)", "HostName=`x`", "HostName=a;b",
        "Compression=yes\nProxyCommand=x", "Compression", "=x", "", "RemoteForward=1 x:1",
    ],
)  # fmt: skip
def test_options_of_ssh_that_may_run_or_write(option: str) -> None:
    with pytest.raises(ValueError, match=r"ssh config|Name=value"):
        known_option(option)
    with pytest.raises(ValidationError):
        SSH(host="board", options=(option,))


@pytest.mark.parametrize(
    "option",
    [
        "Compression=yes", "ServerAliveInterval 5", "-o Ciphers=aes128-ctr,aes256-ctr", "User=me",
        "Port=22", "IdentityFile=~/.ssh/id_board", "IPQoS=none", "StrictHostKeyChecking=yes",
        "KexAlgorithms=^x@openssh.com", "AddressFamily=inet6",
    ],
)  # fmt: skip
def test_options_of_ssh_that_a_profile_may_have(option: str) -> None:
    assert SSH(host="board", options=(option,)).options == (option,)


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=x", "a b", "$(x)", "a;b", "`x`", "a'b", "a\nb", ""]
)
def test_a_host_holds_nothing_for_a_shell(host: str) -> None:
    with pytest.raises(ValidationError):
        SSH(host=host)


def test_what_a_profile_may_not_is_one_line_with_the_way_out() -> None:
    Path("x.toml").write_text(
        'name = "b"\ndescription = ""\n[connection]\nkind = "ssh"\nhost = "b"\noptions ='
        ' ["ProxyCommand=touch canary"]\n'
    )
    with pytest.raises(UsageError) as caught:
        device.read(Path("x.toml"))
    assert (
        "connection.options.0 = 'ProxyCommand=touch canary': a profile cannot set ProxyCommand"
        in str(caught.value)
    )
    assert "put it in your ssh config" in str(caught.value)


def test_a_profile_runs_no_interpreter_here(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path("python")
    script.write_text(f"#!/bin/sh\ntouch {CANARY}\n")
    script.chmod(0o755)
    mine = Device(name="mine", description="", connection=Local(python=str(script.absolute())))
    with pytest.raises(
        UsageError, match=rf"asks to run {script.absolute()} on this machine .*set {INTERPRETER}="
    ):
        runner(mine)
    monkeypatch.setenv(INTERPRETER, "/another/python")
    with pytest.raises(UsageError):
        runner(mine)
    monkeypatch.setenv(INTERPRETER, str(script.absolute()))
    with pytest.raises(DeviceError), runner(mine) as there:
        there.check()
    Path(CANARY).unlink()  # the user has said the same: it was run


def test_a_link_is_not_drawn_over() -> None:
    """A folder from somebody else must not decide which file of the user's becomes a page."""
    folder, kept = Path("built"), Path("kept.txt")
    folder.mkdir()
    made().write(folder)
    kept.write_text("mine")
    (folder / page.NAME).symlink_to(kept.absolute())
    with pytest.raises(UsageError, match="is a link"):
        page.write(folder)
    assert kept.read_text() == "mine"
