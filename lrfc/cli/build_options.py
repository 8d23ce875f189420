"""The options of ``lrfc build``, generated from the fields of its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from lrfc.config import declare

#: Options that --help lists before --methods: like them, they determine the form of the layers.
_BEFORE_METHODS = ("precision", "int8_io", "qat")
Command = Callable[..., None]


def with_options(model: type[BaseModel]) -> Callable[[Command], Command]:
    """Return a decorator that replaces a command's ``**`` parameter by options.

    There is one for each field of the model.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        first: list[inspect.Parameter] = []
        last: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD:
                (last if parameter.kind is parameter.KEYWORD_ONLY else first).append(parameter)
        replaced = signature.replace(parameters=[*first, *parameters(model), *last])
        command.__signature__ = replaced  # type: ignore[attr-defined]
        return command

    return decorate


def parameters(model: type[BaseModel]) -> list[inspect.Parameter]:
    """Return a command's parameter for each field of a model, in the order of --help."""
    fields = declare.fields(model)
    moved = [name for name in _BEFORE_METHODS if name in fields]
    names = [name for name in fields if name not in moved]
    place = names.index("methods") if "methods" in names else len(names)
    names[place:place] = moved
    return [_parameter(name, fields[name]) for name in names]


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    declared = declare.option(field)
    kind, default = _as_text(field, commas=declared.commas)
    # A switch that is off by default needs no flag to turn it off.
    flags = [f"--{name.replace('_', '-')}"] if default is False else []
    # With spaces, because --help wraps lines only there.
    shown = ", ".join(field.default) if declared.commas else True
    info = typer.Option(*flags, help=declared.help, show_default=shown)
    keyword, annotation = inspect.Parameter.KEYWORD_ONLY, Annotated[kind, info]
    return inspect.Parameter(name, keyword, annotation=annotation, default=default)


def _as_text(field: FieldInfo, *, commas: bool) -> tuple[Any, Any]:
    """The type of a field on the command line, and its default in that type."""
    if get_origin(field.annotation) is tuple:
        return (str, ",".join(field.default)) if commas else (list[str], list(field.default))
    kind = _without_none(field.annotation)
    parsed = any(isinstance(item, BeforeValidator) for item in field.metadata)
    kind = kind if kind in (bool, int, Path) and not parsed else str
    return (kind if field.default is not None else kind | None), field.default


def _without_none(annotation: Any) -> Any:
    """The type of a value other than None: int for ``Annotated[int, …] | None``."""
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        return _without_none(members[0]) if len(members) == 1 else annotation
    return annotation.__origin__ if get_origin(annotation) is Annotated else annotation
