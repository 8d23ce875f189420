"""Keras model files as untrusted data: their configurations, and safe copies for Keras to open."""

from __future__ import annotations

import errno
import json
import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from lrfc.errors import ModelError
from lrfc.ir.keras import weights as keras_weights
from lrfc.system import reader
from lrfc.system.reader import shown

#: Limit of the bytes of a model file, packed and unpacked.
MODEL_BYTES = 8 << 30
#: A file may unpack to this many bytes, and a larger one to _EXPANSION times its size.
_UNPACKED_BYTES = 256 << 20
_EXPANSION = 100
_HDF5 = b"\x89HDF\r\n\x1a\n"
_DAMAGE = (*keras_weights.DAMAGE, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_WEIGHTS = "model.weights.h5"


@dataclass(frozen=True)
class ModelFile:
    """The configurations in a model file.

    ``suffix``: '.keras' or '.h5', by the content. ``version``: the Keras that wrote the file.
    ``compiled``: the configuration that the model was compiled with; empty when it was not.
    """

    path: Path
    suffix: str
    version: str
    config: Mapping[str, Any]
    compiled: Mapping[str, Any]

    @property
    def legacy(self) -> bool:
        """Whether the file is of Keras 1 or 2, or of an unknown version."""
        return self.version.startswith(("1", "2", "("))


def read(path: Path | str) -> ModelFile:
    """Read the configurations in a .keras or .h5 file; the content decides, not the suffix.

    UsageError when the path is no regular file, ModelError when the file holds no model.
    """
    location = reader.located(path)
    if os.path.isdir(location):  # noqa: PTH112  Path.is_dir raises for a name that is too long
        raise ModelError(
            f"{location} is a folder: lrfc reads .keras and .h5 files; load it with the TensorFlow"
            " that wrote it and save it with model.save('model.keras')"
        )
    with reader.opened(location, limit=MODEL_BYTES) as file, _damage_as_error(location):
        magic = file.read(8)
        file.seek(0)
        if magic == _HDF5:
            return _read_hdf5(file, location)
        if magic.startswith(b"PK"):
            return _read_archive(file, location)
    raise ModelError(
        f"{shown(location)} is not a Keras model: it is neither a .keras archive nor an HDF5 file"
    )


class Copy:
    """A copy of a model file in a folder, rewritten from its checked content, for Keras to open."""

    def __init__(self, file: ModelFile, folder: Path) -> None:
        self._file, self._folder = file, folder
        self._weights = folder / _WEIGHTS
        self._assets: list[str] = []
        #: Number of elements of all weights.
        self.elements = 0
        with reader.opened(file.path, limit=MODEL_BYTES) as content, _damage_as_error(file.path):
            if file.suffix == ".h5":
                self._copy_hdf5(content)
            else:
                self._unpack(content)

    def with_config(self, config: Mapping[str, Any], name: str) -> Path:
        """Write ``name`` plus suffix, with this configuration and the weights and assets."""
        path = self._folder / f"{name}{self._file.suffix}"
        text = json.dumps(config)
        if self._file.suffix == ".h5":
            import h5py

            shutil.copyfile(self._weights, path)
            with h5py.File(path, "r+") as file:
                file.attrs["model_config"] = text.encode()
            return path
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": self._file.version}))
            archive.writestr("config.json", text)
            archive.write(self._weights, _WEIGHTS)
            for asset in self._assets:
                archive.write(self._folder / asset, asset)
        return path

    def _copy_hdf5(self, content: BinaryIO) -> None:
        """Copy the weights and the version of an HDF5 file."""
        import h5py

        path = self._file.path
        with (
            h5py.File(content, "r") as source,
            h5py.File(self._weights, "w", libver="latest") as target,
        ):
            for name in ("keras_version", "backend"):
                if name in source.attrs:
                    target.attrs[name] = _text(source.attrs[name], f"{path}: its {name}")
            link = source.get("model_weights", getlink=True)
            if not isinstance(link, h5py.HardLink) or not isinstance(
                source["model_weights"], h5py.Group
            ):
                raise ModelError(f"{path} holds a model without its weights")
            self.elements = keras_weights.copy(
                source["model_weights"],
                target.create_group("model_weights"),
                limit=_unpacked_limit(path),
                where=str(path),
            )

    def _unpack(self, content: BinaryIO) -> None:
        """Unpack the weights and assets of a .keras archive, and copy the weights."""
        import h5py

        path = self._file.path
        limit = _unpacked_limit(path)
        unpacked = self._folder / "packed.h5"
        with zipfile.ZipFile(content) as archive:
            weights = _member(archive, _WEIGHTS, path)
            with unpacked.open("wb") as target:
                limit -= _extract(archive, weights, target, limit, path)
            for info in archive.infolist():
                if not info.filename.startswith("assets/") or info.is_dir():
                    continue
                asset = self._folder / _asset_name(info, path)
                asset.parent.mkdir(parents=True, exist_ok=True)
                with asset.open("xb") as target:
                    limit -= _extract(archive, info, target, limit, path)
                self._assets.append(info.filename)
        with (
            h5py.File(unpacked, "r") as source,
            h5py.File(self._weights, "w", libver="latest") as target,
        ):
            self.elements = keras_weights.copy(
                source, target, limit=_unpacked_limit(path), where=f"{path}: {_WEIGHTS}"
            )
        unpacked.unlink()


def _read_archive(file: BinaryIO, path: Path) -> ModelFile:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if "config.json" not in names:
            raise ModelError(
                f"{shown(path)} is a zip archive without a config.json, so it is not a Keras model"
            )
        documents = {}
        for name in ("config.json", "metadata.json"):
            if name in names:
                documents[name] = _document(_content(archive, name, path), f"{shown(path)}: {name}")
    version = documents.get("metadata.json", {}).get("keras_version", "(unknown)")
    config = documents["config.json"]
    return _checked(path, ".keras", version, config, config.get("compile_config"), "compile_config")


def _read_hdf5(file: BinaryIO, path: Path) -> ModelFile:
    import h5py

    with h5py.File(file, "r") as content:
        if "model_config" not in content.attrs:
            raise ModelError(
                f"{shown(path)} holds weights but no model: save the whole model with"
                " model.save('model.keras')"
            )
        version = content.attrs.get("keras_version", "(unknown)")
        texts = {
            name: _text(content.attrs[name], f"{shown(path)}: its {name}")
            for name in ("model_config", "training_config")
            if name in content.attrs
        }
    documents = {
        name: _document(text, f"{shown(path)}: its {name}") for name, text in texts.items()
    }
    version = version.decode(errors="replace") if isinstance(version, bytes) else version
    compiled = documents.get("training_config")
    return _checked(path, ".h5", version, documents["model_config"], compiled, "training_config")


def _checked(
    path: Path, suffix: str, version: Any, config: Any, compiled: Any, name: str
) -> ModelFile:
    if not isinstance(version, str):
        raise ModelError(f"{shown(path)}: its keras_version is {shown(version, 40)}, not a version")
    if compiled is not None and not isinstance(compiled, dict):
        raise ModelError(f"{shown(path)}: its {name} is {shown(compiled, 40)}, not a JSON object")
    if not isinstance(config.get("class_name"), str) or not isinstance(
        config.get("config"), dict | list
    ):
        raise ModelError(f"{shown(path)}: its configuration names no model")
    return ModelFile(path, suffix, shown(version, 40), config, compiled or {})


def _document(content: bytes | str, where: str) -> dict[str, Any]:
    if len(content) > reader.DOCUMENT_BYTES:
        raise ModelError(
            f"{where} has {len(content):,} bytes; at most {reader.DOCUMENT_BYTES:,} are read here"
        )
    return reader.json_object(content, where, error=ModelError, constants=True)


def _text(value: Any, where: str) -> str | bytes:
    if not isinstance(value, str | bytes):
        raise ModelError(f"{where} is no text")
    return value


# -- archives --------------------------------------------------------------------------------------


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> zipfile.ZipInfo:
    """The member with that name; ModelError unless there is exactly one, not encrypted."""
    members = [info for info in archive.infolist() if info.filename == name]
    if len(members) != 1:
        raise ModelError(f"{shown(path)} holds {'no' if not members else 'more than one'} {name}")
    if members[0].flag_bits & 1:
        raise ModelError(
            f"{shown(path)} is encrypted: unpack it and save the model without a password"
        )
    return members[0]


def _content(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """The bytes of a JSON member; ModelError when they are too many."""
    info = _member(archive, name, path)
    if info.file_size > reader.DOCUMENT_BYTES:
        raise ModelError(
            f"{shown(path)}: {name} has {info.file_size:,} bytes; at most {reader.DOCUMENT_BYTES:,}"
            " are read here"
        )
    with archive.open(info) as member:
        return member.read(reader.DOCUMENT_BYTES + 1)


def _extract(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: BinaryIO, limit: int, path: Path
) -> int:
    """Unpack a member into a file and return its bytes; ModelError for more than ``limit``."""
    if info.flag_bits & 1:
        raise ModelError(
            f"{shown(path)} is encrypted: unpack it and save the model without a password"
        )
    size = 0
    with archive.open(info) as member:
        while block := member.read(1 << 20):
            size += len(block)
            if size > limit:
                raise ModelError(
                    f"{shown(path)}: '{shown(info.filename, 120)}' unpacks to more than {limit:,}"
                    " bytes"
                )
            target.write(block)
    return size


def _asset_name(info: zipfile.ZipInfo, path: Path) -> str:
    """The name of an asset; ModelError for a name that leads out of the folder."""
    name = info.filename
    parts = PurePosixPath(name).parts
    linked = stat.S_ISLNK(info.external_attr >> 16)
    if linked or ".." in parts or "\\" in name or ":" in name or str(PurePosixPath(name)) != name:
        raise ModelError(f"{shown(path)}: '{shown(name, 120)}' is no name of an asset of a model")
    return name


def _unpacked_limit(path: Path) -> int:
    """The most bytes that a file may unpack to."""
    return min(MODEL_BYTES, max(_UNPACKED_BYTES, _EXPANSION * path.stat().st_size))


@contextmanager
def _damage_as_error(path: Path) -> Iterator[None]:
    """Raise ModelError for the errors that the libraries raise on a damaged file."""
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # an error of the copy, not of the file
        raise ModelError(
            f"{shown(path)} is truncated or damaged: copy or download it again"
        ) from error
