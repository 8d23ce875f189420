"""Temporary files are in one folder of the process, which is removed even after a kill."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrfc.errors import UsageError
from lrfc.system import files, scratch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's folder of temporary files."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o700)


def child(code: str, place: Path, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(place)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_one_root_that_nobody_else_can_read(place: Path) -> None:
    with scratch.folder() as first, scratch.folder() as second, scratch.unnamed() as file:
        assert first.parent == second.parent != first
        assert first.parents[1] == scratch.root() == place / f"lrfc-{os.getuid()}"
        for path in (first, first.parent, scratch.root()):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert os.fstat(file.fileno()).st_dev == place.stat().st_dev
        (first / "file").write_text("x")
    assert list(place.iterdir()) == []


def test_a_file_without_a_name_outlives_the_folder(place: Path) -> None:
    file = scratch.unnamed()
    assert list(place.iterdir()) == []
    file.write(b"kept")
    file.seek(0)
    assert file.read() == b"kept"
    file.close()


def test_threads_share_the_folder(place: Path) -> None:
    start = threading.Barrier(6)
    seen: list[Path] = []

    def work() -> None:
        start.wait(30)
        for _ in range(50):
            with scratch.folder() as folder:
                (folder / "mine").touch()
                seen.append(folder)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(seen)) == 300
    assert list(place.iterdir()) == []


HOLDS = """
import sys
from pathlib import Path
from lrfc.system import scratch
path = Path(sys.argv[1])
with scratch.for_all() as own, scratch.folder() as folder, scratch.file_elsewhere(path):
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    Path(sys.argv[1]).write_text("half")
    import subprocess, tempfile
    tempfile.mkstemp()
    subprocess.run(["mktemp"], check=True, stdout=subprocess.DEVNULL)
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_leaves_goes_at_the_next_start(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with (
        child(HOLDS, place, elsewhere / ".killed.part") as killed,
        child(HOLDS, place, elsewhere / ".lives.part") as lives,
    ):
        for process in (killed, lives):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        killed.kill()
        killed.wait()
        assert [path.name for path in place.iterdir()] == [f"lrfc-{os.getuid()}"], (
            "also what libraries and children make"
        )
        assert len(list(scratch.root().iterdir())) == 2
        with scratch.folder() as mine:
            names = {path.name.split("-")[0] for path in scratch.root().iterdir()}
            assert names == {str(lives.pid), str(os.getpid())}
            assert [path.name for path in elsewhere.iterdir()] == [".lives.part"]
            assert mine.is_dir()
        assert len(list(next(scratch.root().iterdir()).iterdir())) > 2, (
            "that of a process that lives is not touched"
        )
        lives.communicate("", timeout=30)
    assert lives.returncode == 0
    assert list(place.iterdir()) == []


def test_only_files_of_our_own_are_removed(place: Path, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.txt"
    with child(HOLDS, place, mine) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    with scratch.folder():
        assert mine.read_text() == "half", "its name does not end in .part"


def test_a_note_without_its_end_is_not_followed(place: Path, tmp_path: Path) -> None:
    victim = tmp_path / "x.part"
    victim.write_text("keep")
    notes = scratch.root() / "1-dead" / "files"
    notes.mkdir(parents=True)
    scratch.root().chmod(0o700)
    (notes / "a").write_text(str(victim))
    with scratch.folder():
        assert victim.exists()
        assert not notes.exists()


FORK = """
import os, sys
from lrfc.system import scratch
with scratch.folder() as folder:
    number = os.fork()
    if not number:
        with scratch.folder() as own:
            assert own.parent != folder.parent, "not that of the process it comes from"
        os._exit(0)
    assert os.waitpid(number, 0)[1] == 0
    assert folder.is_dir()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_has_a_folder_of_its_own(place: Path) -> None:
    with child(FORK, place) as process:
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert list(place.iterdir()) == []


def test_a_root_that_is_a_link(place: Path, tmp_path: Path) -> None:
    (tmp_path / "trap").mkdir(mode=0o700)
    scratch.root().symlink_to(tmp_path / "trap")
    with pytest.raises(UsageError, match=r"lrfc-\d+ is not a folder.*TMPDIR"), scratch.folder():
        pytest.fail("the block must not run")
    assert list((tmp_path / "trap").iterdir()) == []


def test_a_root_that_others_can_write(place: Path) -> None:
    scratch.root().mkdir()
    scratch.root().chmod(0o777)
    with pytest.raises(UsageError, match=r"read or written by others.*TMPDIR"), scratch.folder():
        pytest.fail("the block must not run")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_root_of_somebody_else(place: Path) -> None:
    scratch.root().mkdir(mode=0o700)
    os.chown(scratch.root(), 65534, 65534)
    with pytest.raises(UsageError, match=r"belongs to somebody else.*TMPDIR"), scratch.unnamed():
        pytest.fail("the block must not run")


def test_a_place_that_cannot_be_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "missing"))
    with (
        pytest.raises(UsageError, match=r"temporary files cannot be written.*missing.*TMPDIR"),
        scratch.folder(),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("command", ["ops", "build gone.keras"])
def test_the_command_line_says_so_in_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / f"lrfc-{os.getuid()}").symlink_to(tmp_path)
    run = subprocess.run(
        [sys.executable, "-m", "lrfc", *command.split()],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("lrfc: the folder of temporary files")
    assert run.stderr.count("\n") == 1


# -- single files ----------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    assert files.write(path, "ä\n", parents=True) == path
    assert path.read_bytes() == "ä\n".encode()
    path.chmod(0o640)

    def half(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_with(path, half)
    assert path.read_text(encoding="utf-8") == "ä\n"
    files.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]


def test_a_link_to_a_file_stays_a_link(place: Path, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_pipe_is_written_into(place: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    files.check(tmp_path / "pipe")
    files.write(tmp_path / "pipe", "through")
    reader.join(30)
    assert got == ["through"]
    assert [each.name for each in tmp_path.iterdir() if each != place] == ["pipe"]


@pytest.mark.parametrize("name", ["taken", "file/below", "x" * 300, "missing/file"])
def test_a_file_that_cannot_be_written(place: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"cannot write .*; name another"):
        files.write(tmp_path / name, "x", way_out="name another")
    if name != "missing/file":  # its folder can be made
        with pytest.raises(UsageError, match=r"cannot write .*; name another"):
            files.check(tmp_path / name, way_out="name another")
    assert (tmp_path / "file").read_text() == "mine"
    assert {each.name for each in tmp_path.iterdir()} == {"place", "taken", "file"}


KILLED = """
import os, signal, sys
from pathlib import Path
from lrfc.system import files
def half(file):
    file.write(b"new")
    os.kill(os.getpid(), signal.SIGKILL)
files.write_with(Path(sys.argv[1]), half)
"""


def test_a_kill_keeps_the_file_before(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with child(KILLED, place, path) as process:
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.glob(".file.*.part"))) == 1
    with scratch.folder():
        assert {each.name for each in tmp_path.iterdir()} == {"place", "file"}
