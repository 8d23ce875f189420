"""A .tflite file as a tree of objects that can be changed, and back.

The objects are those of LiteRT's schema library: ``ModelT`` with its ``subgraphs``, ``buffers``
and so on, whose fields have the names of TensorFlow's schema.fbs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import ModelError
from lrfc.targets.imports import need

#: The identifier at byte 4 of every file.
IDENTIFIER = b"TFL3"
#: Bytes of a file beside its weights, so that the buffer of its bytes need not grow.
REST = 4 << 20


def schema() -> Any:
    """The schema library; ModelError where LiteRT is not installed."""
    return need("ai_edge_litert.schema_py_generated", "ai-edge-litert")


def unpack(content: bytes | bytearray) -> Any:
    """The ``ModelT`` of a file; ModelError where the bytes are none.

    Its arrays, the weights as well, are views of ``content``.
    """
    library = schema()
    if not library.Model.ModelBufferHasIdentifier(content, 0):
        raise ModelError("not a .tflite file: it lacks the identifier TFL3")
    return library.ModelT.InitFromPackedBuf(content, 0)


def pack(model: Any) -> bytes:
    """The bytes of the file of a ``ModelT``; the same model gives the same bytes."""
    import flatbuffers

    weights = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    builder = flatbuffers.Builder(weights + REST)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(memoryview(builder.Bytes)[builder.Head() :])  # Output() copies them once more


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether the file holds the values of a ``TensorT``."""
    buffer = model.buffers[tensor.buffer]
    return bool(buffer.offset) or (buffer.data is not None and len(buffer.data) > 0)


def numbers(vector: Any) -> list[int]:
    """The numbers in a vector of the file, which may lack it."""
    return [] if vector is None else [int(number) for number in vector]


def integers(model: Any, tensor: Any) -> NDArray[Any]:
    """The values of a constant ``TensorT`` of 32 or 64 bits, in one row."""
    kind = "<i8" if tensor.type == schema().TensorType.INT64 else "<i4"
    return np.frombuffer(bytes(model.buffers[tensor.buffer].data), kind)


def operator(model: Any, op: Any) -> str:
    """The name of an ``OperatorT``'s operator, as in schema.fbs: 'CONV_2D'."""
    code = model.operatorCodes[op.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return str(next(k for k, v in vars(schema().BuiltinOperator).items() if v == number))


def tensor_bytes(tensor: Any) -> int:
    """The bytes that the values of a ``TensorT`` take; ModelError where they have no fixed size."""
    types = schema().TensorType
    sizes = {
        types.BOOL: 1, types.INT8: 1, types.UINT8: 1, types.INT16: 2, types.UINT16: 2,
        types.FLOAT16: 2, types.INT32: 4, types.UINT32: 4, types.FLOAT32: 4, types.INT64: 8,
        types.UINT64: 8, types.FLOAT64: 8, types.COMPLEX64: 8, types.COMPLEX128: 16,
    }  # fmt: skip
    shape = numbers(tensor.shape)
    if tensor.type not in sizes or min(shape, default=1) < 0:
        raise ModelError(f"tensor '{name(tensor)}': its values have no fixed number of bytes")
    return sizes[tensor.type] * math.prod(shape)


def name(tensor: Any) -> str:
    """The name of a ``TensorT``."""
    return tensor.name.decode() if isinstance(tensor.name, bytes) else str(tensor.name or "")
