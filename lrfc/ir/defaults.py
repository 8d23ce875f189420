"""Default attributes of each op kind: those of Keras."""

from __future__ import annotations

from typing import Any

from lrfc.errors import GraphError
from lrfc.ir.kinds import names

_POOLING = {"pool_size": 2, "strides": None, "padding": "valid", "data_format": "channels_last"}
_GLOBAL_POOLING = {"data_format": "channels_last", "keepdims": False}
_CONV: dict[str, Any] = {
    "filters": None,
    "kernel_size": None,
    "strides": 1,
    "padding": "valid",
    "data_format": "channels_last",
    "dilation_rate": 1,
    "groups": 1,
    "activation": None,
    "use_bias": True,
}
_TRANSPOSED = {key: value for key, value in _CONV.items() if key != "groups"} | {
    "output_padding": None
}
_DEPTHWISE = {"depth_multiplier": 1} | {
    key: value for key, value in _CONV.items() if key not in ("filters", "groups")
}
_SEPARABLE = {"filters": None} | _DEPTHWISE
#: By kind: the attributes that hold where a configuration does not set them, in the order in which
#: they are printed.
DEFAULTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(names("conv"), _CONV),
    **dict.fromkeys(names("transposed"), _TRANSPOSED),
    **dict.fromkeys(names("depthwise"), _DEPTHWISE),
    **dict.fromkeys(names("separable"), _SEPARABLE),
    "Dense": {"units": None, "activation": None, "use_bias": True},
    "EinsumDense": {"equation": None, "activation": None},
    "BatchNormalization": {"axis": -1, "epsilon": 1e-3, "center": True, "scale": True},
    "Rescaling": {"scale": None, "offset": 0.0},
    "Activation": {"activation": None},
    "ReLU": {"max_value": None, "negative_slope": 0.0, "threshold": 0.0},
    "LeakyReLU": {"negative_slope": 0.3},
    "Softmax": {"axis": -1},
    "Concatenate": {"axis": -1},
    "Flatten": {"data_format": "channels_last"},
    "Reshape": {"target_shape": None},
    "Permute": {"dims": None},
    "ZeroPadding1D": {"padding": 1},
    "ZeroPadding2D": {"padding": 1, "data_format": "channels_last"},
    "ZeroPadding3D": {"padding": 1, "data_format": "channels_last"},
    **dict.fromkeys(names("pooling"), _POOLING),
    **dict.fromkeys(names("global_pooling"), _GLOBAL_POOLING),
}


def default(kind: str, attr: str) -> Any:
    """Keras' default of an attribute; GraphError when the table has none for this kind."""
    try:
        return DEFAULTS[kind][attr]
    except KeyError:
        raise GraphError(f"kind '{kind}' has no attribute '{attr}'") from None


def kinds() -> frozenset[str]:
    """The kinds in the table of defaults."""
    return frozenset(DEFAULTS)
