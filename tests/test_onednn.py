"""The state of oneDNN: decided once, before TensorFlow is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lrfc.ir.processor import ALLOCATOR, VARIABLE


def printed(code: str, value: str | None) -> str:
    """The output of a new process that runs ``code`` with the environment variable set."""
    environment = {name: text for name, text in os.environ.items() if name != VARIABLE} | (
        {} if value is None else {VARIABLE: value}
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


SHOWN = (
    "from lrfc.ir import processor; print(processor.onednn(), 'tensorflow' in"
    " __import__('sys').modules)"
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "on, the default of lrfc False"),
        ("0", f"off, by {VARIABLE} in the environment False"),
        ("1", f"on, by {VARIABLE} in the environment False"),
    ],
)
def test_it_is_decided_before_tensorflow_is_imported(value: str | None, expected: str) -> None:
    assert printed(SHOWN, value) == expected


@pytest.mark.parametrize("value", ["0", "1"])
def test_tensorflow_follows_the_decision(value: str) -> None:
    loaded = f"from lrfc.ir.backend import keras; keras(); {SHOWN}"
    assert (
        printed(loaded, value)
        == f"{'on' if value == '1' else 'off'}, by {VARIABLE} in the environment True"
    )
    locked = f"from lrfc.ir import processor; processor.decide({value == '1'}); {loaded}"
    assert printed(locked, None) == f"{'on' if value == '1' else 'off'}, the default of lrfc True"


def test_the_setting_of_a_host_program_stays() -> None:
    assert (
        printed(f"import tensorflow; {SHOWN}", "0")
        == "off, by the program that imported TensorFlow before lrfc True"
    )


@pytest.mark.parametrize(("given", "expected"), [(None, "true"), ("false", "false")])
def test_the_allocator_is_set_unless_the_user_set_it(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ALLOCATOR, raising=False)
    if given is not None:
        monkeypatch.setenv(ALLOCATOR, given)
    shown = "import os; from lrfc.ir import processor; processor.decide();"
    assert printed(f"{shown} print(os.environ[{ALLOCATOR!r}])", None) == expected
    after = f"import tensorflow; {shown} print(os.environ.get({ALLOCATOR!r}))"
    assert printed(after, None) == str(given)


def test_the_environment_overrides_a_manifest() -> None:
    code = f"from lrfc.ir import processor; processor.decide(True); {SHOWN}"
    assert printed(code, "0") == f"off, by {VARIABLE} in the environment False"
