"""A device over ssh, with a real OpenSSH server here: a fault is one line, nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lrfc.errors import DependencyError, DeviceError
from lrfc.protocols import Artifact
from lrfc.system import scratch
from lrfc.targets.catalog import target
from lrfc.targets.devices.runners import runner, ssh
from lrfc.targets.devices.runners.ssh import SSHRunner
from tests import helpers, loopback
from tests.disks import small_disk
from tests.fake_runner import before_request

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with loopback.Server(tmp_path_factory.mktemp("sshd")) as started:
        yield started


@pytest.fixture(autouse=True)
def _nothing_is_left(request, monkeypatch):
    monkeypatch.setattr(ssh, "PAUSE", 0.01)
    made, real = [], tempfile.TemporaryDirectory

    def noted(*args, **options):
        folder = real(*args, **options)
        made.append(Path(folder.name))
        return folder

    # Those of this process: others may be at work on the machine.
    monkeypatch.setattr(tempfile, "TemporaryDirectory", noted)
    yield
    assert [folder for folder in made if folder.exists()] == [], "the control socket's folder"
    if "server" in request.fixturenames:
        assert request.getfixturevalue("server").left() == []


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    graph = helpers.graph_of(helpers.conv_net())
    folder = tmp_path_factory.mktemp("files")
    return [target(name).emit(graph, folder / f"m.{name}") for name in ("tflite", "onnx")]


def refused(device, said):
    """Connecting and checking fails, in one line."""
    with pytest.raises(DeviceError, match=said) as failure, runner(device) as there:
        there.check()
    assert "\n" not in str(failure.value)
    assert "'loopback'" in str(failure.value)
    assert failure.value.exit_code == 5


def test_a_device_is_asked_and_measured(server, files):
    with runner(server.device()) as there:
        assert isinstance(there, SSHRunner)
        (folder,) = server.remote.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        facts = there.check()
        assert facts.python == ".".join(map(str, sys.version_info[:3]))
        assert set(facts.runtimes) == {"tflite", "onnx"}
        assert facts.free_bytes > 0
        first = there.compare([files[0], files[1], files[0]], runs=20)
        assert [m.runtime for m in first] == ["LiteRT", "onnxruntime", "LiteRT"]
        assert all(m.n == 20 and m.median_ms > 0 and m.cold_start_ms > 0 for m in first)
        assert [m.path for m in first] == [files[0].path, files[1].path, files[0].path]
        assert sorted(path.suffix for path in folder.iterdir()) == [
            ".onnx",
            ".pid",
            ".pid",
            ".pid",
            ".pid",
            ".py",
            ".tflite",
        ], "a file is sent once"
        assert there.profile(files[1], runs=5)
        assert there.compare(files[:1], runs=3)[0].n == 3
        assert len([path for path in folder.iterdir() if path.suffix != ".pid"]) == 3


def test_a_wrong_key_is_refused(server, tmp_path):
    options = (
        f"IdentityFile={loopback.key(tmp_path / 'other')}",
        *server.device().connection.options[1:],
    )
    refused(
        server.device(options=options),
        r"refuses the login: .*Permission denied \(publickey\).*ssh-copy-id",
    )


def test_an_unknown_and_a_changed_host_key(server, tmp_path):
    keep = server.device().connection.options
    known = tmp_path / "known"
    known.write_text("")
    refused(
        server.device(options=(*keep[:2], f"GlobalKnownHostsFile={known}")),
        r"its host key is not the one known here; connect once by hand",
    )
    public = loopback.key(tmp_path / "other").with_suffix(".pub").read_text()
    known.write_text(f"[127.0.0.1]:{server.port} {public}")
    refused(
        server.device(options=(*keep[:2], f"GlobalKnownHostsFile={known}")),
        rf"was reinstalled, .*ssh-keygen -R '\[127\.0\.0\.1\]:{server.port}'",
    )


def test_nobody_listens(server):
    refused(
        server.device(port=loopback.free_port()),
        r"cannot be reached: .*Connection refused; see that it is on",
    )


def test_no_such_host(server):
    refused(server.device(host="nowhere.invalid"), "cannot be reached: .*nowhere.invalid")


def test_a_port_that_never_answers(server):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        refused(
            server.device(port=silent.getsockname()[1], connect_timeout=1.0),
            "cannot be reached: .*timed out",
        )
        assert time.monotonic() - began < 60


def test_connecting_is_tried_again(tmp_path, monkeypatch):
    late = loopback.Server(tmp_path / "late")
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            late.__enter__()

    monkeypatch.setattr(ssh, "time", type("Clock", (), {"sleep": staticmethod(pause)}))
    try:
        with runner(late.device()) as there:
            assert there.check().python
        assert len(pauses) == 2
    finally:
        late.__exit__(None, None, None)
    assert late.left() == []


def test_no_client(server, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(DependencyError, match="the program ssh is not installed"),
        runner(server.device()),
    ):
        pass


def test_a_folder_that_is_not_there(server):
    refused(server.device(folder="/nowhere"), "no folder can be made in /nowhere: .*No such file")


def test_no_python(server):
    refused(
        server.device(python="/nowhere/python3"),
        r"there is no Python at /nowhere/python3 on device 'loopback'; install it",
    )
    refused(
        server.device(python="~/no such/python3"),
        r"there is no Python at ~/no such/python3 on device 'loopback'",
    )


def test_a_python_that_cannot_be_run(server, tmp_path):
    path = tmp_path / "python3"
    path.write_text("#!/bin/sh\n")
    refused(
        server.device(python=str(path)),
        "cannot be run on device 'loopback', it may be made for another architecture",
    )


def test_a_python_for_another_processor(server, tmp_path):
    path = tmp_path / "python3"
    path.write_text("#!/bin/sh\nkill -ILL $$\n")
    path.chmod(0o755)
    refused(
        server.device(python=str(path)),
        "was killed by SIGILL on device 'loopback': its runtime is made for another processor",
    )


def test_another_architecture_than_promised(server):
    refused(
        server.device().model_copy(update={"machine": "sparc"}),
        f"says that it is {os.uname().machine}, its profile says sparc",
    )


def test_no_runtime(server, files, tmp_path):
    path = tmp_path / "python3"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    path.chmod(0o755)
    bare = server.device(python=str(path))
    refused(
        bare, r"the runtime of \.tflite files is not installed there .*: pip install ai-edge-litert"
    )
    with (
        pytest.raises(
            DeviceError,
            match=r"cannot measure m\.onnx: the runtime of \.onnx files is not installed there",
        ),
        runner(bare) as there,
    ):
        there.compare(files[1:])


def test_a_file_that_is_no_model(server, tmp_path):
    path = tmp_path / "bad.tflite"
    path.write_bytes(b"not a model")
    with (
        pytest.raises(DeviceError, match=r"cannot measure bad\.tflite"),
        runner(server.device()) as there,
    ):
        there.compare([Artifact(path, "tflite", "fp32")])
    with (
        pytest.raises(DeviceError, match=r"cannot measure .*none\.tflite: No such file"),
        runner(server.device()) as there,
    ):
        there.compare([Artifact(tmp_path / "none.tflite", "tflite", "fp32")])


def test_no_room_for_the_file(tmp_path, files):
    """A limit on the size of files. A full disk follows below, where a small one can be made."""
    big = tmp_path / "big.tflite"
    big.write_bytes(files[0].path.read_bytes() + bytes(4 << 20))
    limited = 'sh -c \'ulimit -f 256; trap "" XFSZ; exec sh -c "$SSH_ORIGINAL_COMMAND"\''
    with loopback.Server(tmp_path / "sshd", limited) as server:
        with (
            runner(server.device()) as there,
            pytest.raises(
                DeviceError,
                match=r"no space left in .* for big\.tflite \(4,\d+,\d+ bytes\); make room",
            ),
        ):
            there.compare([Artifact(big, "tflite", "fp32")])
        assert server.left() == []


def test_a_full_disk(server, tmp_path, files):
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"):
        big = tmp_path / "big.tflite"
        big.write_bytes(files[0].path.read_bytes() + bytes(1 << 20))
        with (
            runner(server.device(folder=str(disk))) as there,
            pytest.raises(DeviceError, match=r"no space left in .*disk for big\.tflite"),
        ):
            there.compare([Artifact(big, "tflite", "fp32")])
        assert list(disk.iterdir()) == []
        (disk / "full").write_bytes(bytes(60 << 10))
        for number in range(50):
            try:
                (disk / f"f{number}").mkdir()
            except OSError:
                break
        refused(server.device(folder=str(disk)), "no space left in")


def measured(server, files, first=lambda: None):
    with runner(server.device()) as there:
        first()
        return there.compare(files)


def test_the_server_is_killed_in_the_middle(tmp_path, files, monkeypatch):
    with loopback.Server(tmp_path / "sshd") as server:
        before_request(monkeypatch, 2 + 2 * 5 + 1, lambda worker: server.kill(), "runs")
        with pytest.raises(
            DeviceError,
            match=(
                r"the process to measure m\.\w+ is gone: the connection to device 'loopback' was"
                r" lost"
            ),
        ) as failure:
            measured(server, files)
        assert "\n" not in str(failure.value)
        assert [len(m.rounds_ms) for m in failure.value.measured] == [
            5,
            5,
        ], "what was measured so far is kept"
        assert server.left() == [], "the folder removes itself"


def test_the_server_is_killed_before_a_file_is_sent(tmp_path, files):
    with loopback.Server(tmp_path / "sshd") as server:
        with pytest.raises(
            DeviceError,
            match=r"device 'loopback': the connection was lost while worker\.py was sent",
        ):
            measured(server, files, server.kill)
        assert server.left() == []


def test_the_connection_ends_unseen(tmp_path):
    with loopback.Server(tmp_path / "sshd") as server:
        with (
            pytest.raises(DeviceError, match=r"the connection ended badly; see whether .*/lrfc-"),
            runner(server.device()),
        ):
            server.kill()
        assert server.left() == []


def send(server, number):
    """To the workers there."""
    for pid in loopback.descendants(server.process.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:  # it has ended meanwhile
            continue
        if len(words) > 1 and words[1].endswith(b".py"):
            os.kill(pid, number)


def test_the_worker_is_killed_there(server, files, monkeypatch):
    before_request(monkeypatch, 4, lambda worker: send(server, signal.SIGKILL), "runs")
    with pytest.raises(
        DeviceError,
        match=r"was killed by SIGKILL on device 'loopback': its memory may be too small",
    ):
        measured(server, files)


def test_the_time_is_up(server, files, monkeypatch):
    before_request(monkeypatch, 4, lambda worker: send(server, signal.SIGSTOP), "runs")
    try:
        with (
            pytest.raises(DeviceError, match=r"it took more than 15 s to measure m\.\w+"),
            runner(server.device()) as there,
        ):
            there.compare(files, timeout=15.0)
    except BaseException:
        send(server, signal.SIGCONT)
        raise


def test_sending_takes_too_long(tmp_path, files):
    slow = (
        "sh -c 'case $SSH_ORIGINAL_COMMAND in *.py*) sleep 30;; esac; exec sh -c"
        ' "$SSH_ORIGINAL_COMMAND"\''
    )
    with (
        loopback.Server(tmp_path / "sshd", slow) as server,
        runner(server.device()) as there,
        pytest.raises(
            DeviceError, match=r"sending worker\.py \([\d,]+ bytes\) took more than \d s"
        ),
    ):
        there.compare(files, timeout=3.0)


def test_a_login_shell_that_talks(tmp_path, files):
    talking = "sh -c 'echo welcome; echo beware >&2; exec sh -c \"$SSH_ORIGINAL_COMMAND\"'"
    with loopback.Server(tmp_path / "sshd", talking) as server:
        with runner(server.device()) as there:
            assert there.check().runtimes
            assert there.compare(files[:1], runs=2)[0].n == 2
        assert server.left() == []


PROGRAM = """
import signal
import sys
from pathlib import Path
from lrfc.protocols import Artifact
from lrfc.targets.devices import device
from lrfc.targets.devices.runners import runner
# What a shell starts in the background inherits that the signal is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
with runner(device.load(sys.argv[1])) as there:
    print("open", flush=True)
    there.compare([Artifact(Path(sys.argv[2]), "tflite", "fp32")], runs=10**6)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_this_side_is_interrupted_or_killed(number, server, files, tmp_path):
    connection = server.device().connection
    lines = [
        f"{name} = {value!r}"
        for name, value in connection.model_dump().items()
        if name != "options"
    ]
    profile = tmp_path / "loopback.toml"
    options = ", ".join(f'"{option}"' for option in connection.options)
    profile.write_text(
        "\n".join(
            [
                'name = "loopback"',
                'description = ""',
                "[connection]",
                *lines,
                f"options = [{options}]",
            ]
        )
        + "\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, profile, files[0].path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout.readline() == "open\n"
        (folder,) = server.remote.iterdir()
        for _ in range(600):
            if len(list(folder.iterdir())) == 3:
                break
            time.sleep(0.05)
        time.sleep(0.5)
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
    assert "KeyboardInterrupt" in said or number == signal.SIGKILL
    if number == signal.SIGKILL:
        own = list(scratch.root(Path("/tmp")).glob(f"{running.pid}-*"))
        assert own, "the folder of the connection, which nobody was left to remove"
        with scratch.folder(Path("/tmp")):  # the next run does
            assert not any(folder.exists() for folder in own)
