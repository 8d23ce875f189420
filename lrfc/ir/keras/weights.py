"""Safe copy of the weights in an HDF5 file: plain arrays in groups, without links."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from lrfc.errors import ModelError
from lrfc.system.reader import shown

#: The errors that h5py raises on damaged and malicious files.
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
#: Limit of the groups and arrays of a file. One that two links name counts twice.
_OBJECTS = 1_000_000
#: Limit of the depth of nested groups, and of the items of an attribute.
_DEPTH = 100
_ATTRIBUTE_ITEMS = 100_000
#: Attributes that Keras reads. A long one is split into several, with numbers after their names.
_ATTRIBUTES = frozenset({"backend", "dtype", "keras_version", "layer_names", "weight_names"})
#: deflate, shuffle, fletcher32, szip, nbit, scale-offset and LZF. Any other filter is code in a
#: library, which HDF5 would load.
_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})


def copy(source: Any, target: Any, *, limit: int, where: str) -> int:
    """Copy the arrays, groups and attributes of an HDF5 group; return the number of elements.

    ``limit``: the most bytes of all arrays. ``where``: the file, for messages. ModelError for
    content that Keras never writes: links, arrays in another file, filters that are libraries,
    types other than numbers, more bytes than the limit.
    """
    copied = _Copy(limit, where)
    copied.group(source, target, "")
    return copied.elements


@dataclass
class _Copy:
    """One copy: the bytes that are left of its limit, and the objects and elements so far."""

    left: int
    where: str
    objects: int = 0
    elements: int = 0

    def group(self, source: Any, target: Any, path: str) -> None:
        """Copy a group with all that is in it."""
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
        """Copy an array into the group ``target``."""
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
        """Copy the attributes that Keras reads: names of layers and weights, types HDF5 lacks."""
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
