"""Device profiles: those that ship are valid, the user's win, and an error is one line."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from lrfc.errors import UsageError
from lrfc.targets.devices import device
from lrfc.targets.devices.device import Device

SHIPPED = (
    "host",
    "raspberry-pi-4",
    "jetson-orin",
    "android",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-512",
    "ethos-u85-512",
    "cortex-m7",
    "cortex-m4",
)
SSH = 'name = "board"\ndescription = "mine"\n[connection]\nkind = "ssh"\nhost = "board.local"\n'
OLD = SSH.replace("[connection]", "[reach]")


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A folder of profiles of its own."""
    monkeypatch.setattr(device, "own_folder", lambda: tmp_path / "config" / "devices")
    return tmp_path / "config" / "devices"


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_valid_and_named_after_its_file(name):
    found = device.load(name)
    assert found.name == name
    assert found.description
    kinds = {"host": "local", "raspberry-pi-4": "ssh", "jetson-orin": "ssh", "android": "adb"}
    other = "vela" if name.startswith("ethos") else "analytic"
    assert found.connection.kind == kinds.get(name, other)
    assert found.measured == (name in kinds)
    if not found.measured:
        assert found.precisions == ("int8",)


def test_nothing_else_ships():
    assert [name for name, _, _ in device.known()] == sorted(SHIPPED)


def test_the_schema_is_that_of_the_model():
    assert device.SCHEMA.read_text(encoding="utf-8") == device.schema_text()
    assert "connection" in json.loads(device.schema_text())["properties"]


def test_the_table_of_the_connection_may_have_its_former_name(tmp_path):
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(OLD)
    new.write_text(SSH)
    assert device.load(old) == device.load(new)
    assert device.load(old).model_dump()["connection"]["host"] == "board.local"


def test_the_users_profile_wins(own, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "host"\ndescription = "mine"\nthreads = 3\n')
    assert device.load("host").threads == 1
    assert device.load(path).threads == 3
    assert device.load(str(path)).threads == 3
    assert device.add(path) == own / "host.toml"
    assert device.load("host").threads == 3
    assert {name: place for name, place, _ in device.known()}["host"] == own / "host.toml"


def test_add_replaces_a_profile_only_with_force(own, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(SSH)
    assert device.add(path).read_text() == SSH
    path.write_text(SSH + "port = 2222\n")
    with pytest.raises(UsageError, match=r"board\.toml exists: device 'board' is known; .*--force"):
        device.add(path)
    assert device.add(path, force=True).read_text().endswith("port = 2222\n")
    assert [file.name for file in own.iterdir()] == ["board.toml"], "no part is left"


def test_a_bad_profile_is_not_added(own, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(SSH + "prot = 1\n")
    with pytest.raises(UsageError):
        device.add(path)
    assert not own.exists()


def test_a_folder_that_cannot_be_made_is_named(own, tmp_path):
    (tmp_path / "config").write_text("a file is in the way")
    (tmp_path / "x.toml").write_text(SSH)
    with pytest.raises(UsageError, match=r"cannot write .*Not a directory"):
        device.add(tmp_path / "x.toml")


NAMED = 'name = "a"\ndescription = ""\n'
PRECISIONS = "'fp32', 'fp16', 'dynamic', 'int8' or 'int16x8'"
KINDS = "it is one of local, ssh, adb, vela, analytic"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is not TOML"),
        ('name = "a"', "the key 'description' is missing"),
        ('name = "A b"\ndescription = ""', "name = 'A b': string should match"),
        (
            NAMED + "thread = 2",
            r"unknown key 'thread' \(= 2\): did you mean 'threads'\?; known here are ",
        ),
        (NAMED + "threads = 0", "threads = 0: input should be greater than or equal to 1"),
        (
            NAMED + 'precisions = ["fp61"]',
            rf"precisions.0 = 'fp61': input should be {PRECISIONS}",
        ),
        (NAMED + "formats = []", r"formats = \[\]: tuple should have at least 1 item"),
        (
            NAMED + '[connection]\nkind = "shh"',
            rf"connection.kind = 'shh': {KINDS}: did you mean 'ssh'\?",
        ),
        (
            NAMED + '[connection]\nhost = "x"',
            f"the key 'connection.kind' is missing; {KINDS}",
        ),
        (NAMED + '[connection]\nkind = "ssh"', "the key 'connection.host' is missing"),
        (NAMED + "connection = 3", "connection = 3: "),
        (
            SSH + "prot = 22",
            r"unknown key 'connection.prot' \(= 22\): did you mean 'port'\?; known here are kind,",
        ),
        (SSH + "port = 70000", "connection.port = 70000: input should be less than 65536"),
        (SSH + "schema_version = 2", r"unknown key 'connection.schema_version'"),
        ("schema_version = 2\n" + SSH, "schema_version = 2: input should be 1"),
        (SSH.replace("board.local", "-oProxyCommand=x"), "connection.host = '-oProxyCommand=x'"),
        (OLD + "prot = 22", r"unknown key 'reach.prot' \(= 22\): did you mean 'port'\?"),
        (OLD + "port = 70000", "reach.port = 70000: input should be less than 65536"),
        (NAMED + '[reach]\nkind = "shh"', "reach.kind = 'shh': it is one of local, ssh"),
        (OLD + '[connection]\nkind = "local"', "'reach' is the former name of 'connection'"),
    ],
)
def test_an_error_in_a_profile_is_one_line(text, said, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as failure:
        device.load(path)
    assert str(failure.value).startswith(f"{path}")
    assert "\n" not in str(failure.value)


def test_unknown_names_and_files(tmp_path):
    with pytest.raises(
        UsageError,
        match=r"unknown device 'hots': did you mean 'host'\?; known are android, cortex-m4, ",
    ):
        device.load("hots")
    with pytest.raises(UsageError, match=r"none\.toml: no such device profile; lrfc devices list"):
        device.load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(UsageError, match="is not TOML"):
        device.load(tmp_path / "latin.toml")


def test_a_device_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Device(name="a", description="").threads = 2
