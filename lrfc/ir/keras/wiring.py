"""Check of the order of the layer calls in a configuration of Keras 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lrfc.errors import ModelError
from lrfc.system.reader import shown

_MODELS = ("Functional", "Model")


def check(config: Mapping[str, Any]) -> None:
    """Raise ModelError when a model, or one inside it, has a call that reads a missing output.

    tf_keras makes the calls in rounds until none is left. With such a call it never returns.
    """
    for model in _models(config):
        _check(model)


def _models(value: Any) -> Iterator[Mapping[str, Any]]:
    """The configurations of all models with a graph of layers, outer models first."""
    if isinstance(value, Mapping):
        inner = value.get("config")
        if value.get("class_name") in _MODELS and isinstance(inner, Mapping):
            yield inner
        for item in value.values():
            yield from _models(item)
    elif isinstance(value, list):
        for item in value:
            yield from _models(item)


#: One output that a call reads: the name of a layer and the index of its call.
_Operand = tuple[str, Any]


@dataclass
class _Layer:
    """One layer of a model: the operands of its pending calls, and the indices of its calls.

    ``first``: the index of its first recorded call; ``next``: that of its next call.
    """

    pending: list[list[_Operand]]
    first: int
    next: int
    is_input: bool


def _check(model: Mapping[str, Any]) -> None:
    """Make the calls of a model in rounds, as tf_keras does; ModelError when a round makes none."""
    layers = _layers(model)
    while any(layer.pending for layer in layers.values()):
        progress = False
        for layer in layers.values():
            while layer.pending and all(_is_ready(operand, layers) for operand in layer.pending[0]):
                del layer.pending[0]
                layer.next += 1
                progress = True
        if not progress:
            name = next(name for name, layer in layers.items() if layer.pending)
            raise ModelError(f"its layer '{shown(name, 80)}' waits for an output that never comes")


def _layers(model: Mapping[str, Any]) -> dict[str, _Layer]:
    """The layers of a model by name; ModelError for a malformed list."""
    configs = model.get("layers")
    if not isinstance(configs, list) or not all(isinstance(layer, Mapping) for layer in configs):
        raise ModelError(f"its model '{shown(model.get('name'), 80)}' has no list of layers")
    layers: dict[str, _Layer] = {}
    for layer in configs:
        config = layer.get("config")
        name, calls = layer.get("name"), layer.get("inbound_nodes")
        if not isinstance(name, str) or not isinstance(config, Mapping) or name in layers:
            raise ModelError(
                f"a layer of its model '{shown(model.get('name'), 80)}' has no name of its own"
            )
        if config.get("name", name) != name or not isinstance(calls, list):
            raise ModelError(f"its layer '{shown(name, 80)}' has two names, or no list of calls")
        pending = [list(_operands(call)) for call in calls]
        first = int(_starts_with_input(layer))
        layers[name] = _Layer(pending, first, first, layer.get("class_name") == "InputLayer")
    return layers


def _is_ready(operand: _Operand, layers: Mapping[str, _Layer]) -> bool:
    name, index = operand
    layer = layers.get(name)
    if layer is None or layer.is_input:
        return layer is not None
    return isinstance(index, int) and layer.first <= index < layer.next


def _operands(call: Any) -> Iterator[_Operand]:
    """The outputs that a recorded call reads.

    Each is recorded as [layer, index of its call, index of the output, other arguments].
    """
    if isinstance(call, Mapping):
        for item in call.values():
            yield from _operands(item)
    elif isinstance(call, list):
        if len(call) in (3, 4) and isinstance(call[0], str):
            if call[0] != "_CONSTANT_VALUE":
                yield call[0], call[1]
            yield from _operands(call[3:])
        else:
            for item in call:
                yield from _operands(item)


def _starts_with_input(layer: Mapping[str, Any]) -> bool:
    """Whether a layer is a model whose own input counts as its first call."""
    config = layer["config"]
    if layer.get("class_name") in _MODELS:
        return True
    if layer.get("class_name") != "Sequential" or not isinstance(config.get("layers"), list):
        return False
    first = next(iter(config["layers"]), None)
    if not isinstance(first, Mapping) or not isinstance(first.get("config"), Mapping):
        return False
    return (
        first.get("class_name") == "InputLayer"
        or first["config"].get("batch_input_shape") is not None
    )
