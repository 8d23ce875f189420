"""The reader of untrusted files.

Files that are not regular, too large or nested too deeply are refused, each in one line.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrfc.errors import DeviceError, LrfcError, ModelError, UsageError
from lrfc.system import reader


def said(call: Callable[[], object], error: type[LrfcError] = UsageError) -> str:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", ["a" * 300, "b" * 5000, "~nouser/x", "a\0b", "\ud800x\0"])
def test_what_is_no_path(path: str) -> None:
    for call in (reader.located, reader.kind, reader.contents):
        text = said(lambda call=call: call(path))
        assert "cannot be used as a path" in text
        assert len(text) < 400


def test_a_path_is_expanded_and_need_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reader.located("~/x/y") == tmp_path / "x/y"
    assert reader.kind("~/x/y") is None
    (tmp_path / "file").write_text("")
    assert reader.located(tmp_path / "file/x") == tmp_path / "file/x"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in said(lambda: reader.kind(tmp_path / "loop"))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_a_device_is_not_read(device: str) -> None:
    if not Path(device).exists():
        pytest.skip("there is no such device")
    assert reader.kind(device) == "a device"
    assert said(lambda: reader.contents(device)) == f"{device} is a device, not a regular file"


def test_neither_are_pipes_folders_and_sockets(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe, not a regular file" in said(
        lambda: reader.contents(tmp_path / "pipe", error=ModelError), ModelError
    )
    assert "is a folder" in said(lambda: reader.contents(tmp_path))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert reader.kind(tmp_path / "s") == "a socket"
        assert "cannot be read" in said(lambda: reader.contents(tmp_path / "s"))
    assert said(lambda: reader.contents(tmp_path / "none")) == f"{tmp_path / 'none'}: no such file"


def test_the_size_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert reader.contents(tmp_path / "x", limit=5) == b"12345"
    assert said(lambda: reader.contents(tmp_path / "x", limit=4)).endswith(
        "x has 5 bytes; at most 4 are read here"
    )


def test_a_file_that_says_that_it_is_empty_is_bounded_too() -> None:
    """The files of /proc have no size until they are read."""
    if not Path("/proc/cpuinfo").is_file():
        pytest.skip("there is no /proc")
    assert "has more than 10 bytes" in said(lambda: reader.contents("/proc/cpuinfo", limit=10))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON: .*utf-8"),
        (b"[]", "holds a list, not a JSON object"),
        (b"null", "holds null, not"),
        (b"5", "holds a number, not"),
        (b'"x"', "holds a string, not"),
        (b'{"a": NaN}', "holds NaN, which is no number of JSON"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"a": 1e999}', "holds 1e999, which is too large for a number"),
        (b'{"a": 1, "a": 2}', "holds a key twice in one object"),
        (b'{"a": ' + b"9" * 400 + b"}", "an integer of more than 1023 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit"),
        (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", "is nested too deeply: at most 200 levels"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_no_json_object(content: bytes, text: str) -> None:
    with pytest.raises(DeviceError, match=rf"^it\b.*{text}"):
        reader.json_object(content, "it", error=DeviceError)


def test_json_that_is_one() -> None:
    assert reader.json_object('{"a": [1, 2.5, null, {"b": "ä"}]}', "it") == {
        "a": [1, 2.5, None, {"b": "ä"}]
    }
    assert reader.json_object('{"a": Infinity}', "it", constants=True) == {"a": float("inf")}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a = ", "is not TOML"),
        (b"a = 1\na = 2", "is not TOML"),
        (b"\xff", "is not TOML"),
        (b"a = " + b"[" * 3000 + b"]" * 3000, "is nested too deeply"),
        (b"a = " + b"[" * 250 + b"]" * 250, "is nested too deeply"),
        (b"a = 0x" + b"f" * 5000, "an integer of more than 1023 bits"),
    ],
)
def test_what_is_no_toml(content: bytes, text: str) -> None:
    with pytest.raises(UsageError, match=rf"^it\b.*{text}"):
        reader.toml_table(content, "it")


def test_what_is_shown_is_one_short_line() -> None:
    assert reader.shown("a\nb\x1b[31mc\u202e") == "a?b?[31mc?"
    assert len(reader.shown("x" * 10_000)) == 201
    assert reader.plain({"a\x1b": ["b\x07", 1, None, "c\nd\te"]}) == {
        "a?": ["b?", 1, None, "c\nd\te"]
    }


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("no\nsense"),
        SystemExit(3),
        RecursionError(),
        MemoryError(),
        KeyError("x"),
        OSError(5, "I/O"),
    ],
)
def test_what_the_users_code_raises_is_the_users_to_see(raised: BaseException) -> None:
    def fails() -> None:
        with reader.user_code("data 'mine:f'"):
            raise raised

    assert said(fails).startswith(f"data 'mine:f' failed with {type(raised).__name__}: ")


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), GeneratorExit(), ModelError("of ours")])
def test_what_is_not_the_users_passes(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, reader.user_code("x"):
        raise raised
    assert caught.value is raised


def test_bounded_walks_lists_and_tables() -> None:
    value: Any = 1
    for _ in range(reader.DEPTH - 2):
        value = {"a": value} if isinstance(value, list) else [value]
    reader.bounded([value], "it")
    assert "nested too deeply" in said(lambda: reader.bounded([[[value]]], "it"))
