"""Declaration of an option: metadata of a pydantic field, next to its type and its default.

For example, ``seed: Annotated[int, Option("Seed of splits and samples.")] = 0``.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Option:
    """The help of an option, and the way it is written.

    ``example``: a value to show where the default is none. ``name``: the name on the command line
    (with - for _) and in lrfc.toml, where it differs from the field's. ``commas``: whether several
    values are one text, separated by commas, instead of a repeated option. ``before``: the option
    that this one precedes in help and lrfc.toml, where that differs from the order of the fields,
    which is the order in a manifest.
    """

    help: str
    example: str | int | bool | list[str] | None = None
    name: str | None = None
    commas: bool = False
    before: str | None = None


def option(field: FieldInfo) -> Option:
    """Return the declaration of a field; TypeError unless it has exactly one."""
    declared = [item for item in field.metadata if isinstance(item, Option)]
    if len(declared) != 1:
        raise TypeError(f"a field is declared by one Option, not {len(declared)}: {field!r}")
    return declared[0]


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields by the names of their options, in the order of the help."""
    named = {option(field).name or name: field for name, field in model.model_fields.items()}
    places = {name: float(place) for place, name in enumerate(named)}
    for name, field in named.items():
        following = option(field).before
        if following is not None:
            places[name] = places[following] - 0.5
    return {name: named[name] for name in sorted(named, key=places.__getitem__)}


def renamed(model: type[BaseModel]) -> dict[str, str]:
    """Return a map from option to field, for the options whose name differs from the field's."""
    names = {option(field).name: name for name, field in model.model_fields.items()}
    return {name: field for name, field in names.items() if name is not None}
