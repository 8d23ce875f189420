"""Draw result.svg, the output of a build of the example model.

Run it with ``python examples/draw_result.py [OPTION ...]``; the options are those of lrfc build.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
OPTIONS = ("--target", "tflite", "--data", "digits", "--max-macs", "50%")


def main() -> None:
    """Build, and draw the text on stdout."""
    options = tuple(sys.argv[1:]) or OPTIONS
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "lrfc",
            "build",
            str(HERE / "digits.keras"),
            *options,
            "--out",
            "digits-lrfc",
        ]
        shown = subprocess.run(  # noqa: S603
            command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(Text(shown.rstrip()))
    drawn = console.export_svg(title=f"lrfc build digits.keras {' '.join(options)}")
    # Without web fonts, the page uses a font of the reader's machine.
    local = re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", drawn, flags=re.DOTALL)
    local = local.replace("Fira Code, monospace", "monospace")
    (HERE / "result.svg").write_text(local, encoding="utf-8")


if __name__ == "__main__":
    main()
