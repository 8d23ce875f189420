"""The heap: the memory of a freed array returns to the system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HELD = """
import numpy as np
from lrfc.search.heap import lean
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
if {lean}:
    lean()
for _ in range(3):  # frees of this size raise glibc's own limit
    np.ones(3 << 20)
before = resident()
arrays = [np.ones(2 << 20) for _ in range(8)]
last = np.ones(2 << 10)  # stands behind them on the heap
del arrays
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_freed_arrays_return_to_the_system() -> None:
    lean, usual = (
        int(
            subprocess.run(
                [sys.executable, "-c", HELD.format(lean=lean)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for lean in (True, False)
    )
    assert lean < 16 << 20
    assert usual >= lean
