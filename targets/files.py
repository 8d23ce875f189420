"""Write an emitted file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from lrfc.errors import UsageError


def write(path: Path, content: bytes) -> None:
    """Write beside the path and rename; UsageError, and no file, when the disk or the folder does not take it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({len(content):,} bytes): {error.strerror}; choose another --out") from error
    finally:
        part.unlink(missing_ok=True)
