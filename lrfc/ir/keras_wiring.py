"""The calls of layers that a configuration of Keras 2 records, and whether they can be made one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lrfc.errors import ModelError
from lrfc.system.reader import shown

_MODELS = ("Functional", "Model")


def check(config: Mapping[str, Any]) -> None:
    """Raise ModelError for a model, or one inside it, with a call that waits for an output which never comes.

    tf_keras makes the calls in rounds until none is left, and would go on for ever.
    """
    for model in _models(config):
        _check(model)


def _models(value: Any) -> Iterator[Mapping[str, Any]]:
    """The configurations of all models with a graph of layers, from the outside inwards."""
    if isinstance(value, Mapping):
        inner = value.get("config")
        if value.get("class_name") in _MODELS and isinstance(inner, Mapping):
            yield inner
        for item in value.values():
            yield from _models(item)
    elif isinstance(value, list):
        for item in value:
            yield from _models(item)


def _check(model: Mapping[str, Any]) -> None:
    layers = model.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise ModelError(f"its model '{shown(model.get('name'), 80)}' has no list of layers")
    waiting: dict[str, list[list[tuple[str, Any]]]] = {}
    made: dict[str, int] = {}  # the index of the next call of each layer
    inputs = set()
    for layer in layers:
        config = layer.get("config")
        name, calls = layer.get("name"), layer.get("inbound_nodes")
        if not isinstance(name, str) or not isinstance(config, Mapping) or name in waiting:
            raise ModelError(
                f"a layer of its model '{shown(model.get('name'), 80)}' has no name of its own"
            )
        if config.get("name", name) != name or not isinstance(calls, list):
            raise ModelError(f"its layer '{shown(name, 80)}' has two names, or no list of calls")
        if layer.get("class_name") == "InputLayer":
            inputs.add(name)
        waiting[name] = [list(_operands(call)) for call in calls]
        made[name] = int(_starts_with_input(layer))
    starts = dict(made)
    while any(waiting.values()):
        progress = False
        for name, calls in waiting.items():
            while calls and all(_is_made(operand, starts, made, inputs) for operand in calls[0]):
                del calls[0]
                made[name] += 1
                progress = True
        if not progress:
            stuck = next(name for name, calls in waiting.items() if calls)
            raise ModelError(f"its layer '{shown(stuck, 80)}' waits for an output that never comes")


def _is_made(
    operand: tuple[str, Any], starts: Mapping[str, int], made: Mapping[str, int], inputs: set[str]
) -> bool:
    name, index = operand
    if name in inputs:
        return True
    return name in made and isinstance(index, int) and starts[name] <= index < made[name]


def _operands(call: Any) -> Iterator[tuple[str, Any]]:
    """The outputs that a recorded call reads: [layer, index of its call, index of the output, other arguments]."""
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
    """Whether a layer is a model that counts its own input as its first call."""
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
