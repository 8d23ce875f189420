"""Helper: whole builds of small networks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lrfc
from lrfc.engine.package import Result
from lrfc.errors import NoGainError


def built(model: Any, folder: Path, **options: Any) -> Result:
    """The result of a build without a fine-tune, also where the file does not pay.

    A small network may be neither faster nor smaller; then the original ships.
    """
    found: list[Result] = []
    with suppress(NoGainError):
        lrfc.build(model, out=folder / "out", epochs=0, on_result=found.append, **options)
    (result,) = found
    return result
