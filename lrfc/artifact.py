"""The output folder: whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import platform
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lrfc.errors import UsageError
from lrfc.manifest import File, Scale

#: Packages whose versions a manifest records; those that are not installed are null.
PACKAGES = (
    "lrfc", "tensorflow", "keras", "numpy", "scipy", "networkx", "tensorly", "ai-edge-litert", "onnx", "onnxruntime", "tf2onnx",
    "tensorflow-model-optimization", "ethos-u-vela",
)  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def folder(out: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A new folder beside ``out`` to write into, which becomes ``out`` when the block ends and vanishes, with everything in it, when the block fails.

    An existing ``out`` is replaced in one step at the end when it is empty or was written by lrfc (it has a manifest.json or a pareto.json) and ``overwrite`` is true.
    UsageError when it may not be replaced, when the place cannot be written, and when the disk is full.
    """
    out = Path(out).expanduser().absolute()
    check(out, overwrite=overwrite)
    final = out.resolve()
    made = [parent for parent in final.parents if not parent.exists()]  # innermost first
    work = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        try:
            work.mkdir(parents=True)
        except OSError as error:
            raise _unwritable(error, out) from error
        yield work
        check(out, overwrite=overwrite)
        _put(work, final)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        free = _free(final)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if _is_full(error) and isinstance(error, Exception) and not isinstance(error, UsageError):
            raise UsageError(
                f"the disk is full: {free} of free space for the output folder '{out}'; make room or choose another place with --out"
            ) from error
        raise


def check(out: Path, *, overwrite: bool = True) -> None:
    """Raise UsageError unless ``out`` is free or may be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise UsageError(f"output folder '{out}' is a file; choose another name with --out")
    if out.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UsageError(f"output folder '{out}' is the current folder or holds it, and cannot be replaced; choose another with --out")
    if any(out.iterdir()):
        if not any((out / own).is_file() for own in ("manifest.json", "pareto.json")):
            raise UsageError(f"output folder '{out}' is not empty and was not written by lrfc; choose another with --out")
        if not overwrite:
            raise UsageError(f"output folder '{out}' exists already; choose another with --out")


def _put(work: Path, final: Path) -> None:
    """Move the finished folder into its place. An old one stands aside until then, and comes back when the move fails."""
    if not final.exists():
        work.rename(final)
        return
    old = final.with_name(work.name.replace(".partial", ".old"))
    try:
        final.rename(old)
        work.rename(final)
    finally:
        if old.exists() and final.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(final)


def _unwritable(error: OSError, out: Path) -> UsageError:
    if error.errno in _FULL:
        return UsageError(f"the disk is full: {_free(out)} of free space for the output folder '{out}'; make room or choose another place with --out")
    return UsageError(f"output folder '{out}' cannot be made ({error.strerror}); choose another place with --out")


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind the error. Libraries wrap it in errors of their own, and keep only its text."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in _FULL) or "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _free(path: Path) -> str:
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    free = float(shutil.disk_usage(place).free)
    for unit in ("bytes", "KiB", "MiB"):
        if free < 1024:
            return f"{free:.4g} {unit}"
        free /= 1024
    return f"{free:.4g} GiB"


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(path: Path, root: Path, format: str, scales: Sequence[tuple[str, float, int]] = ()) -> File:  # noqa: A002  the name of the manifest's field
    """The manifest's entry for a file under the output folder ``root``. ``scales``: name, scale and zero point of each integer input and output."""
    told = tuple(Scale(name=name, scale=scale, zero_point=zero) for name, scale, zero in scales)
    return File(path=path.relative_to(root).as_posix(), sha256=sha256(path), bytes=path.stat().st_size, format=format, scales=told)


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that have a part in a result; None for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if found["lrfc"] is None:  # run from the tree
        from lrfc import __version__

        found["lrfc"] = __version__
    return found
