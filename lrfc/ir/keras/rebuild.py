"""A tf_keras model built again from Keras 3 layers, with its weights."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from lrfc.errors import ModelError
from lrfc.ir.backend import keras, reason

#: TensorFlow functions that Keras 2 recorded in its models: the function of keras.ops, and
#: TensorFlow's names of the arguments that it takes, in order.
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
    """The functional or Sequential tf_keras model in Keras 3; shared layers stay shared, nested models nested.

    ModelError names the layer that cannot be.
    """
    return _Rebuilder(model).model(model)


class _Rebuilder:
    """One pass over a model and the models nested in it; it knows the layers that were built already."""

    def __init__(self, model: Any) -> None:
        self.layers: dict[int, Any] = {}
        self.names: dict[int, str] = {}
        layers = list(model._flatten_layers())
        taken = {layer.name for layer in layers}
        for layer in layers:
            if "/" in layer.name:
                self.names[id(layer)] = name = _unique(_legal(layer.name), taken)
                taken.add(name)

    def name(self, layer: Any) -> str:
        """The layer's name; where it has a '/', which Keras 3 does not take, another that no layer has."""
        return self.names.get(id(layer), str(layer.name))

    def model(self, model: Any) -> Any:
        """The model's counterpart."""
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
        """The Keras 3 tensors that a recorded call of a layer gives."""
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
            if hasattr(layer, "cell") or hasattr(
                layer, "forward_layer"
            ):  # Keras 2 puts the initial states of a recurrent layer behind its input
                sequence, *states = args[0] if isinstance(args[0], list | tuple) else [args[0]]
                args, kwargs = [sequence], kwargs | ({"initial_state": states} if states else {})
            first = id(layer) not in self.layers
            if first:
                self.layers[id(layer)] = self.layer(layer)
            new = self.layers[id(layer)]
            result = new(
                *args, **{name: value for name, value in kwargs.items() if value is not None}
            )
            if first and layer.weights and not hasattr(layer, "_nodes_by_depth"):
                new.set_weights(layer.get_weights())
                if hasattr(
                    new, "finalize_state"
                ):  # preprocessing layers compute from their weights what they use
                    new.finalize_state()
            return _hard_sigmoid(layer, result)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"its layer '{layer.name}' ({kind}) cannot be rebuilt: {reason(error)}"
            ) from error

    def layer(self, layer: Any) -> Any:
        """The layer's counterpart, without weights."""
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
    """What the Keras 3 class takes of a Keras 2 configuration; the initializers have done their work."""
    taken = {
        "name",
        "trainable",
        "dtype",
        "activity_regularizer",
        *inspect.signature(cls.__init__).parameters,
    }
    kept = {
        key: value
        for key, value in config.items()
        if key in taken and not key.endswith("_initializer")
    }
    if "alpha" in config and "negative_slope" in taken:
        kept["negative_slope"] = float(config["alpha"])
    if isinstance(kept.get("dtype"), dict):
        kept["dtype"] = kept["dtype"]["config"]["name"]
    if cls.__name__ == "BatchNormalization" and isinstance(kept.get("axis"), list | tuple):
        (kept["axis"],) = kept["axis"]
    for key, value in kept.items():
        if key == "name":
            kept[key] = _legal(value)
        elif key in ("activation", "recurrent_activation"):
            kept[key] = _activation(cls.__name__, key, value)
        elif isinstance(value, dict) and key in ("layer", "backward_layer", "cell"):
            kept[key] = _from_config(value["class_name"], value["config"])
        elif key == "cells":
            kept[key] = [_from_config(cell["class_name"], cell["config"]) for cell in value]
    if cls.__name__ in ("Bidirectional", "TimeDistributed", "RNN", "StackedRNNCells"):
        return {
            key: (
                keras().saving.serialize_keras_object(value)
                if key in ("layer", "backward_layer", "cell", "cells")
                else value
            )
            for key, value in kept.items()
        }
    return kept


def _activation(kind: str, key: str, value: Any) -> Any:
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
    return "linear"  # what follows the layer then computes it: _hard_sigmoid


def _hard_sigmoid(layer: Any, tensor: Any) -> Any:
    """clip(0.2 x + 0.5, 0, 1) behind a layer that had Keras 2's hard_sigmoid for its activation: Keras 3's function of that name is another one."""
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
    given = inspect.signature(layer.function).bind(*args, **kwargs).arguments
    wanted = [name for name in names.split() if name in given]
    surplus = [
        name
        for name, value in given.items()
        if name not in (*wanted, "name") and value not in (None, False)
    ]
    if surplus:
        raise ModelError(
            f"its layer '{layer.name}' calls tf.{symbol} with {', '.join(surplus)}, which lrfc does"
            " not carry over to Keras 3"
        )
    target = getattr(keras().ops, function)
    order = list(inspect.signature(target).parameters)
    return target(**{order[names.split().index(name)]: given[name] for name in wanted})


def _slices(index: Any) -> Any:
    """An index as Keras 2 records it, with dicts for its slices, as Python writes it."""
    if isinstance(index, dict):
        return slice(index["start"], index["stop"], index["step"])
    if isinstance(index, list | tuple):
        return tuple(_slices(item) for item in index)
    return index


def _legal(name: str) -> str:
    """A name as Keras 3 takes it."""
    return name.replace("/", "_")


def _unique(name: str, taken: Collection[str]) -> str:
    candidate, n = name, 1
    while candidate in taken:
        candidate, n = f"{name}_{n}", n + 1
    return candidate
