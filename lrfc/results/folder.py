"""The output folder: written completely or not at all, never in part."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
import platform
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lrfc.errors import UsageError
from lrfc.results.manifest import File, Scale
from lrfc.system import scratch, swap
from lrfc.system.locks import HeldError
from lrfc.text import size

#: Packages whose versions a manifest records; those that are not installed are null.
PACKAGES = (
    "lrfc",
    "tensorflow",
    "keras",
    "numpy",
    "scipy",
    "networkx",
    "tensorly",
    "ai-edge-litert",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "tensorflow-model-optimization",
    "ethos-u-vela",
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Free bytes that an output folder needs at least: its tables and its page alone take more.
ROOM = 16 << 10


@dataclass(frozen=True)
class Reserved:
    """An output folder that no other process writes until the block of ``reserved`` ends.

    ``out``: the user's path. ``path``: the same, absolute. ``final``: the same, links resolved.
    """

    out: Path
    path: Path
    final: Path
    overwrite: bool = True

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Context manager: a new folder that replaces the output folder at the end of the block.

        It is removed with its content when the block fails. UsageError when a folder that appeared
        meanwhile may not be replaced, and when the disk is full.
        """
        work = swap.staging(self.final)
        try:
            try:
                work.mkdir()
            except OSError as error:
                raise _unwritable(error, self.path) from error
            yield work
            check(self.path, overwrite=self.overwrite)
            try:
                swap.replace(self.final)
            except OSError as error:
                raise _unwritable(error, self.path) from error
        except BaseException as error:
            swap.settle(self.final)
            if (
                _is_full(error)
                and isinstance(error, Exception)
                and not isinstance(error, UsageError)
            ):
                raise _full(self.path) from error
            raise


@contextmanager
def reserved(out: Path, *, overwrite: bool = True) -> Iterator[Reserved]:
    """Context manager: reserve an output folder for this process, before the work begins.

    An existing ``out`` is replaced in one step at the end if it is empty, or if it was written by
    lrfc (it has a manifest.json or a pareto.json) and ``overwrite`` is true. Remains of a process
    that was killed are cleaned up first.

    UsageError when another process has reserved it, when it may not be replaced, and when the disk
    cannot be written or is full.
    """
    original = Path(out)
    try:
        out = original.expanduser().absolute()
        final = out.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody, a loop of links, a null byte
        raise UsageError(
            f"output folder '{out}' cannot be created ({error}); choose another place with --out"
        ) from error
    missing = _missing(final, out)
    with ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        try:
            check(out, overwrite=overwrite)
            final.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(scratch.folder_elsewhere(final))
            stack.enter_context(swap.lock(final))
            swap.settle(final)
            check(out, overwrite=overwrite)
            _check_room(final, out)
        except HeldError as error:
            raise UsageError(
                f"output folder '{out}' is being written by {error.holder}; wait until it has"
                " ended, or choose another with --out"
            ) from error
        except OSError as error:
            raise _unwritable(error, out) from error
        yield Reserved(original, out, final, overwrite)


@contextmanager
def folder(out: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Context manager: reserve and write an output folder.

    See ``reserved`` and ``Reserved.writing``.
    """
    with reserved(out, overwrite=overwrite) as place, place.writing() as work:
        yield work


def check(out: Path, *, overwrite: bool = True) -> None:
    """Raise UsageError unless ``out`` is free or may be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise UsageError(f"output folder '{out}' is a file; choose another name with --out")
    if out.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UsageError(
            f"output folder '{out}' is or contains the current folder, and cannot be replaced;"
            " choose another with --out"
        )
    if out.resolve().is_mount():
        raise UsageError(
            f"output folder '{out}' is a mount point, and cannot be replaced; choose a folder in it"
            " with --out"
        )
    if not os.access(out, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(f"output folder '{out}' is read-only; choose another with --out")
    if any(out.iterdir()):
        if not any((out / name).is_file() for name in ("manifest.json", "pareto.json")):
            raise UsageError(
                f"output folder '{out}' is not empty and was not written by lrfc; choose another"
                " with --out"
            )
        if not overwrite:
            raise UsageError(f"output folder '{out}' exists already; choose another with --out")


def _missing(final: Path, out: Path) -> list[Path]:
    """The parent folders that do not exist yet, innermost first."""
    try:
        missing = [parent for parent in final.parents if not parent.exists()]
        if not final.parents[len(missing)].is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise _unwritable(error, out) from error
    return missing


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not empty: a result is in it, or another process writes there
            folder.rmdir()


def _check_room(final: Path, out: Path) -> None:
    """UsageError where the folder cannot be replaced or the disk is full."""
    parent = final.parent.stat()
    owners = (parent.st_uid, final.stat().st_uid) if final.exists() else ()
    if owners and parent.st_mode & stat.S_ISVTX and os.geteuid() not in (0, *owners):
        raise UsageError(
            f"output folder '{out}' belongs to another user, and cannot be replaced; choose"
            " another with --out"
        )
    if shutil.disk_usage(final.parent).free < ROOM:
        raise _full(out)


def _unwritable(error: OSError, out: Path) -> UsageError:
    if error.errno in _FULL:
        return _full(out)
    if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        return UsageError(
            f"output folder '{out}' cannot be locked: its file system has no locks"
            f" ({error.strerror}); choose another place with --out, and copy the folder"
        )
    return UsageError(
        f"output folder '{out}' cannot be created ({error.strerror}); choose another place with"
        " --out"
    )


def _full(out: Path) -> UsageError:
    place = next(parent for parent in (out, *out.parents) if parent.exists())
    free = size(shutil.disk_usage(place).free)
    return UsageError(
        f"the disk is full: {free} of free space for the output folder '{out}'; make room or"
        " choose another place with --out"
    )


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk caused the error.

    Libraries wrap the error of the system in their own, some of them as text only.
    """
    while error is not None:
        if (
            (isinstance(error, OSError) and error.errno in _FULL)
            or "No space left on device" in str(error)
            or "Disk quota exceeded" in str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(
    path: Path,
    root: Path,
    format: str,  # noqa: A002
    scales: Sequence[tuple[str, float, int]] = (),
) -> File:
    """Return the manifest's entry for a file under the output folder ``root``.

    ``scales``: name, scale and zero point of each integer input and output.
    """
    return File(
        path=path.relative_to(root).as_posix(),
        sha256=sha256(path),
        bytes=path.stat().st_size,
        format=format,
        scales=tuple(
            Scale(name=name, scale=scale, zero_point=zero) for name, scale, zero in scales
        ),
    )


def versions() -> dict[str, str | None]:
    """The versions of Python and of ``PACKAGES``; None for packages that are not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    if versions["lrfc"] is None:  # run from the source tree
        from lrfc.version import __version__

        versions["lrfc"] = __version__
    return versions
