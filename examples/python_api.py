"""Build from Python, with callbacks for progress: ``python examples/python_api.py [OUT]``.

It compresses the digits model and prints the result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import lrfc
from lrfc.errors import BudgetError, LrfcError, NoGainError
from lrfc.results.compare import compare
from lrfc.state import Progress

HERE = Path(__file__).parent


def stage(title: str, total: int) -> Callable[[int], None]:
    """Print the progress of a stage of ``total`` steps.

    lrfc calls it when a stage begins, and the function that it returns after each finished part.
    """
    done = 0

    def step(steps: int) -> None:
        nonlocal done
        done += steps
        print(f"  {title}: {done} of {total}")

    return step


def main(out: Path) -> None:
    """Build, and print the result."""
    try:
        result = lrfc.build(
            HERE / "digits.keras",
            target="tflite",
            data="digits",
            max_macs="50%",
            epochs=0,  # a build without a fine-tune takes seconds
            out=out,
            progress=Progress(stage=stage, log=print),
            on_result=lambda result: print(f"written: {result.out}"),
        )
    except (BudgetError, NoGainError) as error:  # the folder is written nevertheless
        print(f"constraint not met: {error}")
        result = error.result
    except LrfcError as error:  # one line: the fault, its value, and the remedy
        sys.exit(f"lrfc: {error}")

    before, after = result.manifest.before, result.manifest.after
    print(
        f"{result.artifact.name}: {after.file_bytes:,} of {before.file_bytes:,} bytes,"
        f" {result.speedup.median:.2f} times as fast"
    )
    for layer in result.manifest.layers:
        print(f"  {layer.name}: {layer.method or 'unchanged'} {layer.rank or ''}")

    # Repeat the plan without a search: with the same versions, the file has the same bytes.
    again = lrfc.build(HERE / "digits.keras", locked=out, out=out.with_name(f"{out.name}-again"))
    assert again.manifest.artifacts[0].sha256 == result.manifest.artifacts[0].sha256

    # Compare, as a CI pipeline does.
    for verdict in compare(out, again.out, ["accuracy=0.5pp", "size=0%"]).verdicts:
        print(f"{'ok' if verdict.ok else 'REGRESSED'}: {verdict.detail}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits-python"))
