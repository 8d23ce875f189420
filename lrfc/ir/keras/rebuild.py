"""Rebuild of a tf_keras model from Keras 3 layers, with its weights."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from lrfc.errors import ModelError
from lrfc.ir.backend import keras, reason

#: By TensorFlow function that Keras 2 records in its models: the function of keras.ops, and
#: TensorFlow's names of its arguments, in order.
_OPS = {
    **{
        f"{module}.{name}": (name, "x y")
        for module in ("math", "__operators__")
        for name in ("add", "subtract", "multiply")
    },
    **{f"math.{name}": (name, "x y") for name in ("divide", "maximum", "minimum")},
    **{
        f"math.{name}": (name, "x")
        for name in ("abs", "exp", "negative", "sigmoid", "sqrt", "square", "tanh")
    },
    **{f"nn.{name}": (name, "features") for name in ("relu", "relu6", "elu", "selu", "softplus")},
    **{
        f"math.reduce_{name}": (name, "input_tensor axis keepdims")
        for name in ("max", "mean", "min", "sum")
    },
    "__operators__.matmul": ("matmul", "a b"),
    "__operators__.truediv": ("divide", "x y"),
    "cast": ("cast", "x dtype"),
    "clip_by_value": ("clip", "t clip_value_min clip_value_max"),
    "concat": ("concatenate", "values axis"),
    "expand_dims": ("expand_dims", "input axis"),
    "identity": ("identity", "input"),
    "linalg.matmul": ("matmul", "a b"),
    "math.pow": ("power", "x y"),
    "math.truediv": ("divide", "x y"),
    "nn.silu": ("silu", "features"),
    "nn.softmax": ("softmax", "logits axis"),
    "reshape": ("reshape", "tensor shape"),
    "squeeze": ("squeeze", "input axis"),
    "stack": ("stack", "values axis"),
    "transpose": ("transpose", "a perm"),
}
#: The TensorFlow functions that are carried over, without the prefix ``compat.v1``.
SYMBOLS = frozenset(_OPS)
#: Layers of Keras 2 that Keras 3 has under another name.
RENAMED = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "CuDNNGRU": "GRU",
    "CuDNNLSTM": "LSTM",
    "SyncBatchNormalization": "BatchNormalization",
}


def rebuild(model: Any) -> Any:
    """Rebuild a functional or Sequential tf_keras model in Keras 3.

    Shared layers stay shared, and nested models nested. ModelError names a layer that cannot be
    rebuilt.
    """
    return _Rebuilder(model).model(model)


class _Rebuilder:
    """One pass over a model and the models nested in it."""

    def __init__(self, model: Any) -> None:
        #: The layers that are rebuilt already, by identity of the old layer.
        self.layers: dict[int, Any] = {}
        #: The new names of layers, by identity; for those whose old name Keras 3 forbids.
        self.names: dict[int, str] = {}
        layers = list(model._flatten_layers())
        taken = {layer.name for layer in layers}
        for layer in layers:
            if "/" in layer.name:
                self.names[id(layer)] = name = _unique(_legal(layer.name), taken)
                taken.add(name)

    def name(self, layer: Any) -> str:
        """The layer's name; a new one that no layer has in place of one with '/'."""
        return self.names.get(id(layer), str(layer.name))

    def model(self, model: Any) -> Any:
        """The model in Keras 3."""
        k = keras()
        if not getattr(model, "_is_graph_network", False):
            raise ModelError(
                f"its model '{model.name}' ({type(model).__name__}) has no layer graph or no input"
                " shape"
            )
        tensors: dict[int, Any] = {}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                outputs = k.tree.flatten(node.outputs)
                if node.is_input:
                    layer = node.layer
                    results = [
                        k.Input(
                            batch_shape=outputs[0].shape.as_list(),
                            dtype=layer.dtype,
                            name=self.name(layer),
                        )
                    ]
                else:
                    results = k.tree.flatten(self.call(node, tensors))
                tensors.update(zip((id(tensor) for tensor in outputs), results, strict=True))
        inputs, outputs = (
            k.tree.map_structure(lambda tensor: tensors[id(tensor)], structure)
            for structure in (model.input, model.output)
        )
        return k.Model(inputs, outputs, name=self.name(model))

    def call(self, node: Any, tensors: Mapping[int, Any]) -> Any:
        """The output tensors of a recorded call, in Keras 3."""
        layer = node.layer
        args, kwargs = keras().tree.map_structure(
            lambda value: tensors.get(id(value), value),
            (list(node.call_args), dict(node.call_kwargs)),
        )
        kind = type(layer).__name__
        try:
            if kind == "SlicingOpLambda":
                return args[0][
                    _slices(node.call_args[1] if len(args) > 1 else node.call_kwargs["slice_spec"])
                ]
            if kind == "TFOpLambda":
                return _operation(layer, args, kwargs)
            if hasattr(layer, "cell") or hasattr(layer, "forward_layer"):
                # Keras 2 passes the initial states of a recurrent layer in a list after its input.
                sequence, *states = args[0] if isinstance(args[0], list | tuple) else [args[0]]
                args, kwargs = [sequence], kwargs | ({"initial_state": states} if states else {})
            return self.call_layer(layer, args, kwargs)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"its layer '{layer.name}' ({kind}) cannot be rebuilt: {reason(error)}"
            ) from error

    def call_layer(self, layer: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the layer in Keras 3; rebuild it with its weights before the first call."""
        first = id(layer) not in self.layers
        if first:
            self.layers[id(layer)] = self.layer(layer)
        new = self.layers[id(layer)]
        result = new(*args, **{name: value for name, value in kwargs.items() if value is not None})
        if first and layer.weights and not hasattr(layer, "_nodes_by_depth"):
            new.set_weights(layer.get_weights())
            if hasattr(new, "finalize_state"):
                # Preprocessing layers derive values from their weights.
                new.finalize_state()
        return _hard_sigmoid(layer, result)

    def layer(self, layer: Any) -> Any:
        """The layer in Keras 3, without weights."""
        k = keras()
        if hasattr(layer, "_nodes_by_depth"):
            return self.model(layer)
        if type(layer).__name__ == "Lambda":
            return k.layers.Lambda(layer.function, arguments=layer.arguments, name=self.name(layer))
        return _from_config(type(layer).__name__, layer.get_config() | {"name": self.name(layer)})


def _from_config(kind: str, config: Mapping[str, Any]) -> Any:
    cls = _class(kind)
    return cls.from_config(_config(cls, config))


def _class(kind: str) -> Any:
    cls = getattr(keras().layers, RENAMED.get(kind, kind), None)
    if cls is None:
        raise ModelError(f"its layer kind {kind} is not part of Keras 3")
    return cls


def _config(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a Keras 3 class, without initializers, from one of Keras 2."""
    accepted = {
        "name",
        "trainable",
        "dtype",
        "activity_regularizer",
        *inspect.signature(cls.__init__).parameters,
    }
    new = {
        key: value
        for key, value in config.items()
        if key in accepted and not key.endswith("_initializer")
    }
    if "alpha" in config and "negative_slope" in accepted:
        new["negative_slope"] = float(config["alpha"])
    if isinstance(new.get("dtype"), dict):
        new["dtype"] = new["dtype"]["config"]["name"]
    if cls.__name__ == "BatchNormalization" and isinstance(new.get("axis"), list | tuple):
        (new["axis"],) = new["axis"]
    for key, value in new.items():
        if key == "name":
            new[key] = _legal(value)
        elif key in ("activation", "recurrent_activation"):
            new[key] = _activation(cls.__name__, key, value)
        elif isinstance(value, dict) and key in ("layer", "backward_layer", "cell"):
            new[key] = _from_config(value["class_name"], value["config"])
        elif key == "cells":
            new[key] = [_from_config(cell["class_name"], cell["config"]) for cell in value]
    if cls.__name__ in ("Bidirectional", "TimeDistributed", "RNN", "StackedRNNCells"):
        return {
            key: (
                keras().saving.serialize_keras_object(value)
                if key in ("layer", "backward_layer", "cell", "cells")
                else value
            )
            for key, value in new.items()
        }
    return new


def _activation(kind: str, key: str, value: Any) -> Any:
    """The configuration of an activation; ModelError for a hard_sigmoid in a recurrent layer."""
    if isinstance(value, dict):
        if isinstance(value.get("config"), dict):
            return keras().saving.serialize_keras_object(
                _from_config(value["class_name"], value["config"])
            )
        value = value.get("config")
    if value != "hard_sigmoid":
        return value
    if key == "recurrent_activation" or kind.startswith(("LSTM", "GRU", "SimpleRNN", "ConvLSTM")):
        raise ModelError(
            f"its layer kind {kind} uses Keras 2's hard_sigmoid, which recurrent layers of Keras 3"
            " do not have"
        )
    return "linear"  # _hard_sigmoid adds it after the layer


def _hard_sigmoid(layer: Any, tensor: Any) -> Any:
    """The tensor after Keras 2's hard_sigmoid, if that was the activation of the layer.

    It is clip(0.2 x + 0.5, 0, 1). Keras 3 has another function of that name.
    """
    if getattr(getattr(layer, "activation", None), "__name__", "") != "hard_sigmoid":
        return tensor
    layers = keras().layers
    return layers.ReLU(max_value=1.0)(layers.Rescaling(0.2, offset=0.5)(tensor))


def _operation(layer: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    """The keras.ops counterpart of a recorded TensorFlow function."""
    symbol = layer.get_config()["function"].removeprefix("compat.v1.")
    if symbol not in _OPS:
        raise ModelError(
            f"its layer '{layer.name}' calls tf.{symbol}, which lrfc does not carry over to Keras 3"
        )
    function, names = _OPS[symbol]
    arguments = inspect.signature(layer.function).bind(*args, **kwargs).arguments
    supported = [name for name in names.split() if name in arguments]
    others = [
        name
        for name, value in arguments.items()
        if name not in (*supported, "name") and value not in (None, False)
    ]
    if others:
        raise ModelError(
            f"its layer '{layer.name}' calls tf.{symbol} with {', '.join(others)}, which lrfc does"
            " not carry over to Keras 3"
        )
    target = getattr(keras().ops, function)
    parameters = list(inspect.signature(target).parameters)
    return target(**{parameters[names.split().index(name)]: arguments[name] for name in supported})


def _slices(index: Any) -> Any:
    """A Python index from one that Keras 2 recorded, with dicts for its slices."""
    if isinstance(index, dict):
        return slice(index["start"], index["stop"], index["step"])
    if isinstance(index, list | tuple):
        return tuple(_slices(item) for item in index)
    return index


def _legal(name: str) -> str:
    """A name that Keras 3 accepts."""
    return name.replace("/", "_")


def _unique(name: str, taken: Collection[str]) -> str:
    candidate, n = name, 1
    while candidate in taken:
        candidate, n = f"{name}_{n}", n + 1
    return candidate
