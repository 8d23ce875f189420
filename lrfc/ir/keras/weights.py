"""Weights of a model file, written anew: plain arrays in groups, no links, no other file's bytes."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from lrfc.errors import ModelError
from lrfc.system.reader import shown

#: What h5py raises on files that are damaged, or made to look like none that it writes.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    RuntimeError,
    MemoryError,
    OverflowError,
    struct.error,
)
#: Groups and arrays of a file; a link may name one twice, so they are counted as they are reached.
_OBJECTS = 1_000_000
_DEPTH = 100
_ATTRIBUTE_ITEMS = 100_000
#: Attributes that Keras reads; long ones are split over several, which are numbered.
_ATTRIBUTES = frozenset({"backend", "dtype", "keras_version", "layer_names", "weight_names"})
#: deflate, shuffle, fletcher32, szip, nbit, scale-offset and LZF. HDF5 loads any other from a
#: library.
_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})


def copy(source: Any, target: Any, *, limit: int, where: str) -> int:
    """Copy an HDF5 group into another: its arrays, groups and attributes, of ``limit`` bytes in all.

    Gives the number of elements of the arrays. ModelError for what Keras writes nowhere: links,
    arrays kept in another file, filters that are libraries, other types than numbers, more bytes
    than the limit.
    """
    counted = _Copy(limit, where)
    counted.group(source, target, "")
    return counted.elements


@dataclass
class _Copy:
    """One copy, with what is left of its limits."""

    left: int
    where: str
    objects: int = 0
    elements: int = 0

    def group(self, source: Any, target: Any, path: str) -> None:
        import h5py

        if path.count("/") > _DEPTH:
            raise ModelError(f"{self.where}: its weights are nested more than {_DEPTH} groups deep")
        self.attributes(source, target, path)
        for name in source:
            self.objects += 1
            if self.objects > _OBJECTS:
                raise ModelError(f"{self.where} holds more than {_OBJECTS:,} arrays and groups")
            inner = f"{path}/{name}"
            if not isinstance(source.get(name, getlink=True), h5py.HardLink):
                raise ModelError(f"{self.where}: '{shown(inner, 120)}' is a link, not an array")
            item = source[name]
            if isinstance(item, h5py.Group):
                self.group(item, target.create_group(name), inner)
            elif isinstance(item, h5py.Dataset):
                self.array(item, target, name, inner)
            else:
                raise ModelError(f"{self.where}: '{shown(inner, 120)}' is no array")

    def array(self, source: Any, target: Any, name: str, path: str) -> None:
        creation = source.id.get_create_plist()
        filters = {creation.get_filter(i)[0] for i in range(creation.get_nfilters())}
        if source.is_virtual or source.external:
            raise ModelError(f"{self.where}: '{shown(path, 120)}' lies in another file")
        if not filters <= _FILTERS:
            raise ModelError(
                f"{self.where}: '{shown(path, 120)}' is compressed by a filter that is a library"
            )
        if source.shape is None or source.dtype.kind not in "biufcV" or source.dtype.fields:
            raise ModelError(f"{self.where}: '{shown(path, 120)}' holds no numbers")
        self.elements += math.prod(source.shape)
        self.left -= math.prod(source.shape) * source.dtype.itemsize
        if self.left < 0:
            raise ModelError(
                f"{self.where}: '{shown(path, 120)}' declares more than is stored, of shape"
                f" {shown(source.shape, 60)}"
            )
        self.attributes(source, target.create_dataset(name, data=source[()]), path)

    def attributes(self, source: Any, target: Any, path: str) -> None:
        """Copy what Keras reads: the names of layers and weights of an .h5 file, types that HDF5 has not."""
        import h5py

        for name in source.attrs:
            if name.rstrip("0123456789") not in _ATTRIBUTES:
                continue
            entry = source.attrs.get_id(name)
            text = entry.dtype.kind == "S" or h5py.check_string_dtype(entry.dtype) is not None
            items = math.prod(entry.shape or ())
            if not (text or items == 0) or items > _ATTRIBUTE_ITEMS:  # an empty list has no type
                raise ModelError(
                    f"{self.where}: the attribute '{shown(name, 60)}' of '{shown(path, 120)}' is no"
                    " text"
                )
            target.attrs[name] = source.attrs[name]
