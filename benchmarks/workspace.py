"""The memory for activations that XNNPACK takes for a .tflite file, which no runtime reports.

XNNPACK allocates its packed weights and then one workspace for the activations, all aligned. A
library in front of libc (aligned.c, built with cc) writes these sizes down while a child process
has LiteRT allocate the tensors of each file. The workspace is the last one that is not tiny. It
does not hold the inputs and outputs of the file. Linux only.
``lrfc.targets.tflite.xnnpack`` computes the same.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

#: Bytes of the largest aligned allocation that may follow the workspace.
TINY = 1024
_CHILD = """
import sys
from ai_edge_litert.interpreter import Interpreter
for name in sys.argv[1:]:
    file = Interpreter(name, num_threads=1)
    print("start", file=sys.stderr, flush=True)
    file.allocate_tensors()
"""


def workspace_bytes(*paths: Path) -> list[int]:
    """The bytes of each workspace; subprocess.CalledProcessError where cc or LiteRT fails."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "aligned.so")
        source = Path(__file__).with_name("aligned.c")
        command = ["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"]
        subprocess.run(command, check=True)  # noqa: S603  our own command
        done = subprocess.run(  # noqa: S603  the same
            [sys.executable, "-c", _CHILD, *paths],
            env={"LD_PRELOAD": str(library)},
            capture_output=True,
            text=True,
            check=True,
        )
    return [_last(part.splitlines()) for part in done.stderr.split("start\n")[1:]]


def _last(lines: list[str]) -> int:
    sizes = [int(line.split()[1]) for line in lines if line.startswith("aligned ")]
    return next(size for size in reversed(sizes) if size > TINY)


if __name__ == "__main__":
    names = sys.argv[1:]
    for name, size in zip(names, workspace_bytes(*map(Path, names)), strict=True):
        print(name, f"{size:,}")
