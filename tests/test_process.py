"""Workers with any answers at all: an error is one line, at once, and no process is left behind."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lrfc.errors import DeviceError
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.process import LocalTransport, Worker
from lrfc.targets.devices.runners.python import PythonRunner
from lrfc.targets.devices.runners.remote_folder import NotOpenedError, RemoteFolder

#: Seconds that nothing here comes near to; a hang would take them all, and ends with another
#: message.
LONG = 120.0

GOOD = (
    '{"machine": "x", "system": "y", "python": "3.11", "runtimes": {"tflite": "LiteRT 2"},'
    ' "missing": {"onnx": "none"}, "free_bytes": 5}'
)


class Fake(LocalTransport):
    """A device that is a program in Python."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def command(self, timeout: float) -> list[str]:
        """The command of the program, which may write anything."""
        return [
            sys.executable,
            "-S",
            "-c",
            f"import sys, time, os\nout = sys.stdout.buffer\n{self._program}\nout.flush()\n",
        ]


def asked(program: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer of a device that is this program."""
    with (
        Fake(program) as there,
        Worker(there, "look at the device", LONG, time.monotonic() + LONG) as worker,
    ):
        found = worker.ask({"facts": "/tmp"} if request is None else request)
    assert worker._process.returncode is not None
    return found


def test_a_login_shell_may_say_something_first() -> None:
    noise = 'out.write(b"Welcome!\\n\\xff\\xfe bytes\\n[1]\\n")'
    assert (
        asked(f"{noise}\nout.write({GOOD!r}.encode() + b'\\n'); out.flush(); sys.stdin.read()")[
            "python"
        ]
        == "3.11"
    )


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("out.write(b'{\\n')", "what the device answers is not JSON"),
        ("out.write(b'{}\\n')", "makes no sense: machine: Field required"),
        (
            'out.write(b\'{"error": [1, {"a": null}]}\\n\')',
            r"cannot look at the device: \[1, \{'a': None\}\]",
        ),
        ('out.write(b\'{"error": "\\x1b[31mred\\\\nnext"}\\n\')', r"cannot look at the device: "),
        ('out.write(b\'{"machine": "\\xff\\xfe"}\\n\')', "makes no sense: system: Field required"),
        (
            f"out.write({GOOD!r}.replace('5}}', '-5}}').encode() + b'\\n')",
            "makes no sense: free_bytes",
        ),
        (
            f"out.write({GOOD!r}.replace('5}}', '1e999}}').encode() + b'\\n')",
            "too large for a number",
        ),
        ("out.write(b'{\"a\": ' * 5000 + b'1' + b'}' * 5000 + b'\\n')", "nested too deeply"),
        ("out.write(b'\\xff\\xfe\\n' * 1000)", "ended with exit code 0"),
        ("out.write(b'{' * (20 << 20))", "is not JSON"),
        ("sys.exit(3)", "ended with exit code 3"),
        (
            "sys.stderr.write('x' * 10_000_000 + '\\x1b[31mthe end'); sys.exit(4)",
            r"ended with exit code 4: x+…x+\?\[31mthe end",
        ),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ],
)
def test_garbage_is_one_line(program: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said) as caught:
        asked(program)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "it took more than" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_the_answer_of_a_process_that_ended_before_the_request() -> None:
    with (
        Fake(f"out.write({GOOD!r}.encode() + b'\\n')") as there,
        Worker(there, "look at the device", LONG, time.monotonic() + LONG) as worker,
    ):
        worker._process.wait()
        assert worker.ask({"facts": "/tmp"})["machine"] == "x"
        for _ in range(2):
            with pytest.raises(DeviceError, match="ended with exit code 0"):
                worker.ask({"facts": "/tmp"})


def test_as_many_times_as_were_asked_for() -> None:
    answer = "out.write(b'{\"ns\": [1, 2]}\\n')"
    assert asked(answer, {"runs": 2, "inner": 1}) == {"ns": [1, 2]}
    with pytest.raises(DeviceError, match="2 times where 3 were requested"):
        asked(answer, {"runs": 3, "inner": 1})
    with pytest.raises(DeviceError, match=r"makes no sense: ns\.0: Input should be greater than 0"):
        asked("out.write(b'{\"ns\": [0, 2]}\\n')", {"runs": 2, "inner": 1})


def test_a_missing_runtime_of_the_profile_is_refused() -> None:
    mine = Device(name="mine", description="", formats=("tflite", "onnx"))
    with (
        pytest.raises(DeviceError, match="device 'mine': none; or take 'onnx' out"),
        PythonRunner(mine, Fake(f"print({GOOD!r})")) as there,
    ):
        there.check()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lrfc-folder \\x1b[31m", "is no path"),
        ("lrfc-folder -rf", "is no path"),
        ("lrfc-folder ", "is no path"),
        ("lrfc-" + "x" * 100_000, "is no path"),
    ],
)
def test_an_invalid_path_is_no_folder(line: str, said: str) -> None:
    command = [
        sys.executable,
        "-S",
        "-c",
        f"import sys; sys.stdout.write('{line}\\n'); sys.stdout.flush(); sys.stdin.read()",
    ]
    with pytest.raises(NotOpenedError, match=said) as caught:
        RemoteFolder(command, LONG)
    assert "\x1b" not in caught.value.stderr


def test_a_folder() -> None:
    script = Path(sys.executable)
    folder = RemoteFolder(
        [
            str(script),
            "-S",
            "-c",
            "print('hello'); print('lrfc-folder /tmp/x y', flush=True); input()",
        ],
        LONG,
    )
    assert folder.path == "/tmp/x y"
    folder.kill()
