"""Atomic replacement of an output folder, with kills before each operation and two processes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from lrfc.errors import UsageError
from lrfc.results import folder as artifact
from lrfc.system import locks, scratch, swap

ROOT = Path(__file__).parents[1]

#: Forks for each file operation of a swap, and kills the child before that operation. Prints what
#: is there then, and after the next start.
KILLS = """
import hashlib, json, os, shutil, signal, sys, tempfile
from pathlib import Path
from lrfc.results import folder as artifact; from lrfc.system import scratch, swap

root, mode, old, start = Path(sys.argv[1]), *sys.argv[2:]
if mode == "renames":
    swap.exchange = lambda a, b: False
place, out = root / "place", root / "in" / "out"
os.fsync = lambda descriptor: None  # of no use against a kill, and slow
CHANGES = {
    "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "fcntl.flock",
    "shutil.rmtree",
}

def fill(version):
    with artifact.folder(out) as work:
        (work / "sub").mkdir()
        names = ("a", "b", "sub/c")
        for name in names:
            (work / name).write_text(version + name)
        hashes = {name: hashlib.sha256((work / name).read_bytes()).hexdigest() for name in names}
        (work / "manifest.json").write_text(json.dumps({"version": version, "files": hashes}))

def version():
    if not out.exists():
        return "nothing"
    try:
        manifest = json.loads((out / "manifest.json").read_text())
        names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        assert names - {"manifest.json"} == set(manifest["files"])
        for name, value in manifest["files"].items():
            assert hashlib.sha256((out / name).read_bytes()).hexdigest() == value
        return manifest["version"]
    except Exception as error:
        return f"broken: {error!r}"

def forked(job):
    number = os.fork()
    if not number:
        try:
            job()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

def killed_before(number, pipe):
    seen = 0
    def hook(event, args):
        nonlocal seen
        if event in CHANGES:
            seen += 1
            if seen == number:
                os.write(pipe, event.encode())
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    fill("new")

def begun():
    if start == "another":
        with scratch.folder():
            pass
    else:
        shutil.rmtree(place)
        place.mkdir()
        with artifact.reserved(out):
            pass

moments = []
while True:
    shutil.rmtree(root / "in", ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    (root / "in").mkdir()
    place.mkdir()
    if old == "old":
        fill("old")
    reading, writing = os.pipe()
    code = forked(lambda: killed_before(len(moments) + 1, writing))
    os.close(writing)
    event = os.read(reading, 100).decode()
    os.close(reading)
    if code == 0:
        assert version() == "new"
        break
    assert code == -signal.SIGKILL, code
    between, aside = version(), (root / "in" / ".out.old").exists()
    begun()
    left = sorted(path.name for folder in (root / "in", place) for path in folder.iterdir())
    moments.append(
        {"event": event, "between": between, "aside": aside, "after": version(), "left": left}
    )
print(json.dumps(moments))
"""


@pytest.fixture(scope="module")
def system_exchanges(tmp_path_factory: pytest.TempPathFactory) -> bool:
    folder = tmp_path_factory.mktemp("exchange")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    return swap.exchange(folder / "a", folder / "b")


def killed(tmp_path: Path, *args: str) -> list[dict[str, Any]]:
    run = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), *args],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path / "place")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    moments: list[dict[str, Any]] = json.loads(run.stdout)
    return moments


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("start", ["another", "same"])
@pytest.mark.parametrize("mode", ["exchange", "renames"])
def test_a_kill_before_each_file_operation(
    tmp_path: Path, mode: str, start: str, system_exchanges: bool
) -> None:
    """The next start is another command, or a build into the same folder.

    Neither knows of the killed run.
    """
    moments = killed(tmp_path, mode, "old", start)
    assert len(moments) > 40
    for moment in moments:
        gone = mode == "renames" and moment["between"] == "nothing" and moment["aside"]
        assert moment["between"] in ("old", "new") or gone, moment
        assert moment["after"] == ("old" if gone else moment["between"]), moment
        assert moment["left"] == ["out"], moment
    order = [moment["after"] for moment in moments]
    assert order == sorted(order, reverse=True), "once the new one is there it stays"
    assert {"old", "new"} == set(order)
    if mode == "renames":
        assert any(moment["aside"] and moment["between"] == "nothing" for moment in moments)
        assert any(moment["aside"] and moment["between"] == "new" for moment in moments)
    elif system_exchanges:
        assert not any(moment["aside"] for moment in moments)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_kill_of_the_first_build(tmp_path: Path) -> None:
    moments = killed(tmp_path, "exchange", "none", "another")
    for moment in moments:
        assert moment["between"] == moment["after"]
        assert (moment["after"], moment["left"]) in (("nothing", []), ("new", ["out"])), moment
    assert {"nothing", "new"} == {moment["after"] for moment in moments}


def full(out: Path, version: str = "1") -> None:
    with artifact.folder(out) as work:
        (work / "manifest.json").write_text(version)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_without_an_exchange_two_renames_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Old:
        def renameat2(self, *args: object) -> int:
            return -1

    monkeypatch.setattr(swap.ctypes, "CDLL", lambda *args, **options: Old())
    monkeypatch.setattr(swap.ctypes, "get_errno", lambda: number)
    full(tmp_path / "out", "1")
    assert not swap.exchange(tmp_path / "out", tmp_path / "out")
    full(tmp_path / "out", "2")
    assert (tmp_path / "out" / "manifest.json").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_exchange_that_fails_is_said_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def across(a: Path, b: Path) -> bool:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(a), None, str(b))

    full(tmp_path / "out", "1")
    monkeypatch.setattr(swap, "exchange", across)
    with pytest.raises(
        UsageError,
        match=r"out' cannot be created \(Invalid cross-device link\); choose another place with",
    ):
        full(tmp_path / "out", "2")
    assert (tmp_path / "out" / "manifest.json").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# -- locks -----------------------------------------------------------------------------------------

HOLDS = """
import sys
from pathlib import Path
from lrfc.results import folder as artifact
with artifact.reserved(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""


def holder(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(out)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_second_of_two_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with holder(tmp_path / "out") as first:
        for name in ("out", "link"):
            with pytest.raises(
                UsageError,
                match=rf"{name}' is being written by process {first.pid} on \S+; wait .*--out",
            ):
                full(tmp_path / name)
        first.communicate("", timeout=30)
    full(tmp_path / "link")
    assert (tmp_path / "out" / "manifest.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}


def test_the_lock_of_a_killed_process_does_not_block(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        process.kill()
    assert (tmp_path / ".out.lrfc-lock").exists()
    full(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_one_of_many_threads_has_it(tmp_path: Path) -> None:
    start, done = threading.Barrier(8), threading.Barrier(8)
    got: list[str] = []

    def work() -> None:
        start.wait(30)
        try:
            with artifact.reserved(tmp_path / "out"):
                got.append("held")
                done.wait(30)
        except UsageError as error:
            got.append(str(error))
            done.wait(30)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got.count("held") == 1
    refused = [said for said in got if said != "held"]
    assert len(refused) == 7
    for said in refused:  # the name of the holder may not have been written yet
        assert (
            f"is being written by process {os.getpid()} on" in said or "by another process" in said
        )
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_never_held_twice_while_files_come_and_go(tmp_path: Path) -> None:
    """A lock's file is removed on release, so an open file may no longer be at the path."""
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            try:
                with locks.Lock(tmp_path / "lock"):
                    inside.append(number)
                    most.append(len(inside))
                    inside.remove(number)
            except locks.HeldError:
                continue

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(most) == {1}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks otherwise")
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = locks.fcntl.flock

    def refuse(descriptor: int, how: int) -> None:
        if ".out.lrfc-lock" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        flock(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(
        UsageError,
        match=(
            r"cannot be locked: its file system has no locks \(No locks available\); choose another"
            r" place"
        ),
    ):
        full(tmp_path / "out")


# -- what is refused before any work ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["file/out", "x" * 300, "x" * 250, "~nobody-of-this-name/out", "loop/out", "null\0byte"]
)
def test_a_place_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    with (
        pytest.raises(UsageError, match=r"output folder '.*' cannot be created .*--out") as caught,
        artifact.reserved(Path(name)),
    ):
        pytest.fail("the block must not run")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


def test_a_mount_point(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"is a mount point.*choose a folder in it"),
        artifact.reserved(Path("/proc")),
    ):
        pytest.fail("the block must not run")


READ_ONLY = """
import os, stat, sys
from pathlib import Path
from lrfc.results import folder as artifact
from lrfc.errors import UsageError
place = Path(sys.argv[1])
if not os.getuid():
    os.setgid(65534)
    os.setuid(65534)
for name in ("locked/out", "locked/deep/out", "ours", "shared/theirs"):
    try:
        with artifact.reserved(place / name):
            print("taken")
    except UsageError as error:
        print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as two users")
def test_the_rights_of_a_user() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        Path(folder).chmod(0o755)
        rights(Path(folder))


def rights(tmp_path: Path) -> None:
    for name in ("locked", "ours", "shared"):
        (tmp_path / name).mkdir()
    (tmp_path / "shared" / "theirs").mkdir()
    (tmp_path / "shared" / "theirs").chmod(0o777)
    (tmp_path / "shared").chmod(0o1777)
    place = tmp_path / "shared"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{READ_ONLY}"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd="/",
        env=os.environ | {"TMPDIR": str(place)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = run.stdout.splitlines()
    assert len(said) == 4, run.stderr
    assert "locked/out' cannot be created (Permission denied)" in said[0]
    assert "locked/deep/out' cannot be created (Permission denied)" in said[1]
    assert "ours' is read-only" in said[2]
    assert "theirs' belongs to another user" in said[3]
    assert {path.name for path in place.iterdir()} == {"theirs"}


#: The command line, which says at the end whether TensorFlow was imported.
CLI = (
    "import atexit, sys; atexit.register(lambda: print('tensorflow' in sys.modules)); from"
    " lrfc.cli.app import main; main()"
)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("build {model} --out file/out", "file/out' cannot be created (Not a directory)"),
        (
            "build {model} --target tflite --target onnx --out file",
            "file/tflite' cannot be created (Not a directory)",
        ),
        ("build {model} --out held", "held' is being written by process {holder} on"),
        ("explore {model} --out held", "held' is being written by process {holder} on"),
        ("init file/lrfc.toml", "cannot write file/lrfc.toml: Not a directory; name another file"),
        (
            "compare {model} {model} --junit photos",
            "cannot write photos: Is a directory; name another file with --junit",
        ),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, command: str, said: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("mine")
    model = ROOT / "examples" / "digits.keras"
    with artifact.reserved(tmp_path / "held"):
        run = subprocess.run(
            [sys.executable, "-c", CLI, *command.format(model=model).split()],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert run.returncode == 2
    lines = [line for line in run.stderr.splitlines() if not line.startswith("reading model")]
    assert len(lines) == 1
    assert said.format(holder=os.getpid()) in run.stderr
    assert run.stdout == "False\n", "TensorFlow is imported for work"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "photos"}


def test_parents_that_were_made_go_when_nothing_is_written(tmp_path: Path) -> None:
    with artifact.reserved(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_others_left_is_not_touched(tmp_path: Path) -> None:
    """Only paths that belong to this output folder are removed."""
    for name in (".other.partial", ".out.partially", "out.old"):
        (tmp_path / name).mkdir()
    full(tmp_path / "out")
    with scratch.folder():
        assert {path.name for path in tmp_path.iterdir()} == {
            ".other.partial",
            ".out.partially",
            "out.old",
            "out",
        }
