"""ONNX in int8 by onnxruntime's static quantiser, and in float16 by its converter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from lrfc.ir.batch import Batch
from lrfc.system import scratch, silence
from lrfc.targets.imports import need


def quantised(model: Any, inputs: Sequence[str], samples: Batch) -> Any:
    """Quantise weights to 7 bits and activations to 8, with QuantizeLinear and DequantizeLinear.

    ``samples``: one array (N, ...) for each of ``inputs``, from which the ranges of activations are
    read, one sample at a time. Kernels are symmetric with a scale per output channel, activations
    asymmetric (onnxruntime's advice for QDQ). Operators without an int8 kernel stay in float32,
    between the two conversions. Inputs and outputs stay float32.

    Processors without VNNI have no room for the eighth bit of weights. onnxruntime runs activations
    as unsigned there, whatever the file says, and adds two products in a signed 16-bit number that
    saturates: 2 · 255 · 64 fits, 2 · 255 · 127 does not. With 8 bits the file of the digits network
    differs from the model by 0.009 (of the outputs' norm) on kernels with VNNI, and by 0.05 to 0.11
    on those without; with 7 bits by 0.012 on both. ResNet-20 goes from 0.046 to 0.057, a
    MobileNetV2 from 0.040 to 0.035; none of the three classified another image, of 360.
    """
    import onnx

    tools = need("onnxruntime.quantization", "onnxruntime")

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc,name-defined,unused-ignore]
        """The samples, one at a time."""

        def __init__(self) -> None:
            self._number = 0

        def get_next(self) -> Mapping[str, NDArray[Any]] | None:
            if self._number == len(samples[0]):
                return None
            self._number += 1
            return {
                name: x[self._number - 1 : self._number]
                for name, x in zip(inputs, samples, strict=True)
            }

    with scratch.folder() as folder, silence.root_logger():
        source, target = folder / "float.onnx", folder / "int8.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(model), source)
        tools.quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QInt8,
            weight_type=tools.QuantType.QInt8,
            reduce_range=True,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
        return onnx.load(target)


def halved(model: Any) -> Any:
    """Convert weights and operators to float16.

    Inputs and outputs stay float32, and so do operators that onnxruntime has in float32 only.
    """
    tools = need("onnxruntime.transformers.float16", "onnxruntime")
    with silence.root_logger():
        half = need("onnxruntime.transformers.onnx_model", "onnxruntime").OnnxModel(
            tools.convert_float_to_float16(model, keep_io_types=True)
        )
        half.topological_sort(
            is_deterministic=True
        )  # the converter appends the casts of the inputs
        return half.model
