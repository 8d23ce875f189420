"""A file system that fills up at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Make a folder that is a file system of this size ("64k", "1m").

    The test is skipped where this user cannot mount one.
    """
    folder.mkdir()
    if not _mounted(folder, size):
        pytest.skip("a small disk can only be mounted by root on Linux")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def _mounted(folder: Path, size: str) -> bool:
    mount = shutil.which("mount")
    if mount is None or sys.platform != "linux":
        return False
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:  # a sandbox that does not let the program start
        return False
