"""A device over adb: the real client without a device, and a scripted one that answers like adb.

No real Android device was ever tried.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from lrfc.errors import DependencyError, DeviceError, UsageError
from lrfc.protocols import Artifact
from lrfc.targets.catalog import target
from lrfc.targets.devices.device import ADB, Device
from lrfc.targets.devices.runners import benchmark_model, runner
from lrfc.targets.devices.runners.benchmark_model import Turn, parse
from tests import helpers, loopback

#: What benchmark_model said on a phone (github.com/tensorflow/tensorflow/issues/42507).
SAID = """STARTING!
Num threads: [4]
Graph: [/data/local/tmp/m.tflite]
Loaded model /data/local/tmp/m.tflite
The input model file size (MB): 0.004448
Initialized session in 0.855ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding \
150 seconds.
count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding \
150 seconds.
count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, \
Inference (avg): 33209.4
Peak memory footprint (MB): init=0 overall=12.8672
"""

#: adb as far as lrfc uses it: this machine stands for the device. What goes wrong is said in a file
#: beside it.
FAKE = """#!{python}
import json, os, shutil, subprocess, sys, time
here = os.path.dirname(os.path.abspath(__file__))
plan = json.load(open(here + "/plan.json"))
words = sys.argv[1:]
if words == ["devices"]:
    print("List of devices attached")
    for serial, state in plan.get("devices", {{"R58M": "device"}}).items():
        print(serial + "\\t" + state)
    sys.exit(0)
assert words[:2] == ["-s", plan.get("serial", "R58M")], words
if os.path.exists(here + "/gone"):
    sys.exit("adb: device 'R58M' not found")
if words[2] == "push":
    if plan.get("push"):
        sys.exit("adb: error: failed to copy '%s' to '%s': %s" % (words[3], words[4], plan["push"]))
    time.sleep(plan.get("slow", 0))
    data = open(words[3], "rb").read()
    cut = plan.get("cut", len(data)) if words[4].endswith(".tflite") else len(data)
    open(words[4], "wb").write(data[:cut])
    print("%s: 1 file pushed, 0 skipped." % words[3])
    sys.exit(0)
assert words[2:4] == ["shell", "-T"] and len(words) == 5, words
if plan.get("shell"):
    sys.exit(plan["shell"])
os.environ["PATH"] = here + "/there:" + os.environ["PATH"]
os.execvp("sh", ["sh", "-c", words[4]])
"""

PROGRAM = """#!/bin/sh
for word in "$@"; do
    case "$word" in
        --graph=*) graph=${{word#--graph=}};;
        --help) echo "usage: benchmark_model"; exit 0;;
    esac
done
echo run >> {folder}/runs
if [ "$(wc -l < {folder}/runs)" -ge "$(cat {folder}/dies)" ]; then
    touch {folder}/gone
    echo "ERROR: out of memory"
    exit 1
fi
case "$(head -c 8 "$graph")" in
    *TFL3*) ;;
    *)
        echo "ERROR: The model is not a valid Flatbuffer buffer"
        echo "Benchmarking failed."
        exit 1;;
esac
cat <<'END'
{said}END
"""


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """A scripted adb on the PATH; call it to say what goes wrong."""
    folder = tmp_path / "bin"
    (folder / "there").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    for name, text in (
        ("adb", FAKE.format(python=sys.executable)),
        ("there/getprop", "#!/bin/sh\necho 14\n"),
        ("benchmark_model", PROGRAM.format(folder=folder, said=SAID)),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "dies").write_text("1000")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)

    def plan(**what):
        (folder / "plan.json").write_text(json.dumps(what))
        return folder

    plan.folder, plan.data = folder, tmp_path / "data"
    plan()
    yield plan
    left = []
    for _ in range(100):
        left = [
            *plan.data.iterdir(),
            *(line for line in loopback.commands() if str(plan.data) in line),
        ]
        if not left:
            break
        time.sleep(0.1)
    assert left == [], "nothing is left there"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    graph = helpers.graph_of(helpers.conv_net())
    folder = tmp_path_factory.mktemp("files")
    made = [target(name).emit(graph, folder / f"m.{name}") for name in ("tflite", "onnx")]
    shutil.copyfile(made[0].path, folder / "other.tflite")
    return [made[0], Artifact(folder / "other.tflite", "tflite", "fp32"), made[1]]


def android(phone, **connection):
    given = {"folder": str(phone.data)} | (
        {} if "python" in connection else {"benchmark_model": str(phone.folder / "benchmark_model")}
    )
    return Device(
        name="android",
        description="",
        machine=connection.pop("machine", None),
        connection=ADB(**given | connection),
    )


def refused(device, said, error=DeviceError):
    with pytest.raises(error, match=said) as failure, runner(device) as there:
        there.check()
    assert "\n" not in str(failure.value)


def test_python_there_is_asked_and_measured(phone, files):
    with runner(android(phone, python=sys.executable)) as there:
        assert there.check().python == ".".join(map(str, sys.version_info[:3]))
        found = there.compare(files, runs=3)
        assert [m.runtime for m in found] == ["LiteRT", "LiteRT", "onnxruntime"]
        assert there.profile(files[2], runs=3)


def test_benchmark_model_is_asked_and_measured(phone, files):
    with runner(android(phone)) as there:
        facts = there.check()
        assert (facts.machine, facts.system, facts.python) == (
            os.uname().machine,
            "Android 14",
            None,
        )
        assert facts.runtimes["tflite"].startswith("benchmark_model sha256 ")
        assert facts.free_bytes > 0
        found = there.compare(files[:2], runs=40, threads=4)
    assert (phone.folder / "runs").read_text().count("run") == 2 * benchmark_model.TURNS
    for measurement, file in zip(found, files, strict=False):
        assert measurement.path == file.path
        assert measurement.median_ms == pytest.approx(33.2094)
        assert measurement.rounds_ms == (measurement.median_ms,) * benchmark_model.TURNS
        assert measurement.cold_start_ms == pytest.approx(0.855 + 49.06)
        assert (measurement.n, measurement.threads, measurement.iqr_ms) == (
            50 * benchmark_model.TURNS,
            4,
            0,
        )
        assert measurement.peak_rss_bytes is None
        assert measurement.notes == (benchmark_model.NOTE,)


def test_the_output_of_benchmark_model_is_parsed():
    assert parse(SAID) == Turn(33209.4, 855 + 49060, 50)
    newer = SAID.replace(
        "avg=33209.4 std=450", "avg=33209.4 std=450 p5=32700 median=33100 p95=34000"
    )
    assert parse(newer) == Turn(33100, 855 + 49060, 50)
    once = SAID.replace(
        "count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450",
        "count=1 curr=33978",
    )
    assert parse(once) == Turn(33978, 855 + 49060, 1)
    assert parse("") is None
    assert parse(SAID.replace("count=", "number=")) is None
    assert parse(SAID.replace("Init:", "Start:")) is None


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ({}, "adb sees no device; connect it, and allow USB debugging"),
        (
            {"R58M": "unauthorized"},
            "'R58M' does not trust this machine yet; allow USB debugging on its screen",
        ),
        ({"R58M": "offline"}, "'R58M' is offline; reconnect it"),
        (
            {"R58M": "no permissions (user in plugdev group; are your udev rules wrong?)"},
            "'R58M' cannot be used: no permissions",
        ),
        (
            {"R58M": "device", "emulator-5554": "device"},
            r"several devices \(R58M, emulator-5554\); name one .* \(connection.serial\)",
        ),
    ],
)
def test_a_device_that_is_not_ready(phone, devices, said):
    phone(devices=devices)
    refused(android(phone), said)


def test_one_of_several(phone, monkeypatch):
    phone(devices={"R58M": "device", "emulator-5554": "device"}, serial="emulator-5554")
    with runner(android(phone, serial="emulator-5554")) as there:
        assert there.check()
    monkeypatch.setenv("ANDROID_SERIAL", "emulator-5554")
    with runner(android(phone)) as there:
        assert there.check()
    refused(android(phone, serial="X1"), "adb sees no device 'X1'; it sees R58M, emulator-5554")


def test_no_adb(phone, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    refused(android(phone), "the program adb is not installed on this machine", DependencyError)


def test_a_profile_that_names_no_way(phone):
    refused(
        android(phone, benchmark_model=None), "names neither python nor benchmark_model", UsageError
    )
    refused(
        android(phone, benchmark_model="/nowhere/benchmark_model"),
        "'/nowhere/benchmark_model' is no file",
        UsageError,
    )


def test_no_room(phone, files):
    phone(push="couldn't create file: No space left on device")
    with (
        runner(android(phone)) as there,
        pytest.raises(
            DeviceError, match=r"no space left in .*/data for m\.tflite \([\d,]+ bytes\)"
        ),
    ):
        there.compare(files[:1])
    refused(android(phone, folder="/nowhere"), "no folder can be made in /nowhere: .*No such file")
    phone(shell="mktemp: /data/local/tmp/lrfc-XXXXXX: No space left on device")
    refused(android(phone), r"no space left in .*/data; make room there")


def test_sending_fails(phone, files):
    phone(push="remote Permission denied")
    with (
        runner(android(phone)) as there,
        pytest.raises(
            DeviceError, match=r"m\.tflite was not sent: adb: error: .*Permission denied"
        ),
    ):
        there.compare(files[:1])
    phone(slow=120)  # the commands before it are programs that have to start, on a busy machine too
    with (
        runner(android(phone)) as there,
        pytest.raises(DeviceError, match=r"sending m\.tflite .* took more than \d s"),
    ):
        there.compare(files[:1], timeout=6.0)
    phone(cut=100)
    with (
        runner(android(phone)) as there,
        pytest.raises(DeviceError, match=r"m\.tflite did not arrive whole"),
    ):
        there.compare(files[:1])
    with (
        runner(android(phone, python=sys.executable)) as there,
        pytest.raises(DeviceError, match="is not the one that was sent"),
    ):
        there.compare(files[:1])


def test_another_architecture(phone, tmp_path):
    refused(
        android(phone, machine="sparc"),
        f"says that it is {os.uname().machine}, its profile says sparc",
    )
    program = tmp_path / "benchmark_model"
    program.write_text("#!/nowhere/linker64\n")
    refused(
        android(phone, benchmark_model=str(program)),
        rf"cannot run {program}: .*take the benchmark_model built for its architecture",
    )
    program.write_text(
        '#!/bin/sh\necho "CANNOT LINK EXECUTABLE: library libc.so not found" >&2; exit 1\n'
    )
    refused(
        android(phone, benchmark_model=str(program)),
        "cannot run .*: CANNOT LINK EXECUTABLE: library libc.so not found; take",
    )
    refused(
        android(phone, python="/nowhere/python"),
        "did not start: /nowhere/python cannot be run on device .*correct connection.python",
    )


def test_a_file_that_cannot_be_run(phone, tmp_path, files):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"not a model")
    with runner(android(phone)) as there:
        with pytest.raises(
            DeviceError,
            match=(
                r"cannot measure bad\.tflite: benchmark_model: ERROR: The model is not a valid"
                r" Flatbuffer"
            ),
        ):
            there.compare([Artifact(bad, "tflite", "fp32")])
        with pytest.raises(DeviceError, match=r"cannot measure .*none\.tflite: No such file"):
            there.compare([Artifact(tmp_path / "none.tflite", "tflite", "fp32")])
        with pytest.raises(DeviceError, match=r"benchmark_model runs \.tflite files, not m\.onnx"):
            there.compare(files)
        with pytest.raises(UsageError, match=r"runs \(0\) and threads \(1\)"):
            there.compare(files[:1], runs=0)


def test_what_was_measured_before_is_kept(phone, files):
    (phone.folder / "dies").write_text("8")  # in the fourth turn, with one file done
    with (
        pytest.raises(
            DeviceError, match=r"cannot measure m\.tflite: benchmark_model: ERROR: out of memory"
        ) as failure,
        runner(android(phone)) as there,
    ):
        there.compare(files[:2])
    assert [len(m.rounds_ms) for m in failure.value.measured] == [3, 3]
    assert failure.value.measured[0].notes == ("stopped after 3 of 8 turns",)


def test_a_device_that_goes_away(phone, files):
    with runner(android(phone)) as there:
        (phone.folder / "gone").touch()
        with pytest.raises(
            DeviceError,
            match="device 'android': the connection was lost: adb: device 'R58M' not found",
        ):
            there.check()
    (phone.folder / "gone").unlink()
    with runner(android(phone, python=sys.executable)) as there:
        there.check()
        (phone.folder / "gone").touch()
        with pytest.raises(
            DeviceError,
            match=(
                "is gone: the connection to device 'android' was lost: adb: device 'R58M' not found"
            ),
        ):
            there.check()


def test_a_program_that_hangs(phone, files, tmp_path):
    program = tmp_path / "benchmark_model"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    with (
        runner(android(phone, benchmark_model=str(program))) as there,
        pytest.raises(DeviceError, match=r"did not answer within \d s"),
    ):
        there.compare(files[:1], timeout=6.0)


@pytest.fixture
def real(monkeypatch):
    """The real client, with a server of its own, which is ended."""
    program = shutil.which("adb")
    if program is None:
        pytest.skip("adb is not installed: apt-get install adb")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(loopback.free_port()))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    yield program
    subprocess.run([program, "kill-server"], check=False, capture_output=True)


def test_the_real_client_without_a_device(real, tmp_path):
    program = tmp_path / "benchmark_model"
    program.touch()
    listed = subprocess.run([real, "devices"], capture_output=True, text=True, check=True).stdout
    if "\t" in listed:
        pytest.skip("an Android device is connected")
    for connection in (ADB(benchmark_model=str(program)), ADB(python="python3")):
        refused(
            Device(name="android", description="", connection=connection),
            "device 'android': adb sees no device; connect it",
        )
    refused(
        Device(name="android", description="", connection=ADB(python="python3", serial="X1")),
        "adb sees no device",
    )


def test_the_real_client_fails(real, monkeypatch):
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "nonsense")
    refused(
        Device(name="android", description="", connection=ADB(python="python3")),
        "adb devices failed: .*nonsense",
    )
