"""The tail of an arena of TensorFlow Lite Micro: the structures that live with the interpreter.

Fitted to the runtime's own account (print_allocations) of tflite-micro 0.dev20261023, on 251
networks: the int8 files of ResNet-8, ResNet-20, ResNet-20 compressed, ResNet-56, MobileNetV2 in two
sizes, ShuffleNetV2 and VGG-16, and the first k operators of five of them. The largest error is
8 bytes. The structures hold pointers of 64 bits, which a microcontroller has not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from lrfc.costs.workload import Workload

#: Bytes without any operator, of each tensor, and of each operator (TfLiteEvalTensor and
#: NodeAndRegistration).
BASE, TENSOR, OPERATOR = 719, 24, 64
#: Bytes of an operator's own data and options, by its name in the schema.
OWN: Mapping[str, int] = MappingProxyType(
    {
        "ADD": 72,
        "AVERAGE_POOL_2D": 72,
        "CONCATENATION": 84,
        "CONV_2D": 108,
        "DEPTHWISE_CONV_2D": 108,
        "DEQUANTIZE": -8,  # behind it is a float output, which has no scale
        "FULLY_CONNECTED": 112,
        "MAX_POOL_2D": 72,
        "MEAN": 70,
        "MUL": 56,
        "PAD": 64,
        "QUANTIZE": 0,  # the same in front of it
        "RESHAPE": 36,
        "RESIZE_BILINEAR": 0,
        "SLICE": 0,
        "SOFTMAX": 84,
        "STRIDED_SLICE": 120,
        "SUB": 56,
        "TRANSPOSE": 3,
    }
)
#: The same for any other operator.
OTHER = 72
#: Kinds of workloads → the operators that compute them.
_OPERATORS: Mapping[str, str] = MappingProxyType(
    {
        "add": "ADD",
        "concatenate": "CONCATENATION",
        "conv": "CONV_2D",
        "dense": "FULLY_CONNECTED",
        "depthwise": "DEPTHWISE_CONV_2D",
        "multiply": "MUL",
        "ops.pad": "PAD",
        "pool": "MAX_POOL_2D",
        "reduce": "MEAN",
        "resize_bilinear": "RESIZE_BILINEAR",
        "softmax": "SOFTMAX",
        "subtract": "SUB",
        "zeropadding2d": "PAD",
    }
)


def operator_bytes(name: str, tensors: int, channels: int = 0) -> int:
    """The bytes that one operator of a file adds to the tail.

    ``name``: in the schema. ``tensors``: those that it brings, its output and its constants.
    ``channels``: output channels of a convolution or fully connected layer, each of which has a
    multiplier and a shift of 4 bytes, in two arrays aligned to 16 bytes.
    """
    arrays = 2 * 16 * -(-channels // 4)
    return TENSOR * tensors + OPERATOR + OWN.get(name, OTHER) + arrays


def tail_bytes(workloads: Iterable[Workload], *, float_io: bool = False) -> int:
    """The tail of the file of a network with these workloads, before there is a file.

    ``float_io``: the file converts a float input and a float output. What a converter adds besides,
    as reshapes, is not counted.
    """
    edges = operator_bytes("QUANTIZE", 1) + operator_bytes("DEQUANTIZE", 1) if float_io else 0
    return BASE + TENSOR + edges + sum(map(workload_bytes, workloads))


def workload_bytes(workload: Workload) -> int:
    """The bytes that one op adds to the tail.

    A convolution or a fully connected layer brings an output, weights and a bias; a padding or a
    mean an output and one constant.
    """
    name = _OPERATORS.get(workload.kind, workload.kind.upper())
    layer = workload.params > 0
    constants = 2 if layer else 1 if name in ("PAD", "MEAN") else 0
    return operator_bytes(name, 1 + constants, workload.output[-1] if layer else 0)
