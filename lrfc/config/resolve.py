"""The values of a build's options, from flags, the environment, lrfc.toml and the defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError

from lrfc.config import trust
from lrfc.config.build import BuildConfig, problem
from lrfc.config.options import FIELDS, OPTIONS
from lrfc.errors import UsageError
from lrfc.system import files, reader
from lrfc.system.reader import shown
from lrfc.text import like

NAME = "lrfc.toml"
SCHEMA = Path(__file__).with_name("lrfc.schema.json")
KEYWORDS = Path(__file__).with_name("keywords.py")
#: The options that the functions of lrfc.api declare as parameters of their own, because they take
#: more types from Python.
NAMED = ("target", "device", "data", "test_data")
_KEYWORDS_HEAD = '''\
"""The options of ``lrfc.build`` as keywords, written by python -m lrfc.config.resolve."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict


class BuildOptions(TypedDict, total=False):
    """Types of the options by keyword; lrfc.config.build.BuildConfig declares them."""
'''
#: Prefix of the environment variables of options, such as LRFC_BUILD_MAX_MACS. Variables with LRFC_
#: alone name folders, such as LRFC_CACHE.
PREFIX = "LRFC_BUILD_"
#: Variables that are not options: the folder of caches, and the folder of the models and data that
#: tests and benchmarks use.
OTHERS = ("LRFC_CACHE", "LRFC_DATA")


@dataclass(frozen=True)
class Setting:
    """The value of an option as it was written, and its source.

    ``source``: 'flag', 'environment (VARIABLE)', the name of the file, or 'default'.
    """

    value: Any
    source: str


def resolve(
    flags: Mapping[str, Any], file: Path | None, environ: Mapping[str, str]
) -> dict[str, Setting]:
    """Return the setting of every option, from the first source that has it.

    The order of the sources is ``flags``, ``environ``, ``file``, defaults. ``file``: None for
    lrfc.toml in the current folder, if there is one.

    UsageError when a file cannot be read, a name is unknown (with the nearest known one), or a
    value is invalid. Options that only the user may set (lrfc.config.trust) are refused when they
    come from the file alone; a file that the user names may set the output folder.
    """
    path = file if file is not None else Path(NAME)
    sources = [
        {name: Setting(value, "flag") for name, value in flags.items()},
        _environment(environ),
        read(path) if file is not None or os.path.lexists(path) else {},
        {name: Setting(_default(name), "default") for name in OPTIONS},
    ]
    settings = {
        name: next(source[name] for source in sources if name in source) for name in OPTIONS
    }
    from_file = {
        name: setting.value for name, setting in settings.items() if setting.source == str(path)
    }
    trust.refuse(from_file, str(path), out=file is None)
    return settings


def described(settings: Mapping[str, Setting]) -> list[str]:
    """Return log lines that name the options set by the file and by the environment."""
    sources: dict[str, list[str]] = {}
    for name, setting in settings.items():
        if setting.source not in ("flag", "default"):
            sources.setdefault(setting.source, []).append(name)
    return [f"from {source}: {', '.join(names)}" for source, names in sources.items()]


def read(path: Path) -> dict[str, Setting]:
    """Return the settings in a file; UsageError as from ``resolve``."""
    if reader.kind(path) is None:
        raise UsageError(f"{path}: no such file; lrfc init writes a commented one")
    table = reader.toml_table(reader.contents(path), str(path))
    values = {}
    for name, value in table.items():
        _known(name, f"{path}: unknown option")
        if isinstance(value, str) and _is_list(name):
            value = _items(value)
        values[name] = tuple(value) if isinstance(value, list) else value
    if isinstance(values.get("time_budget"), int | float):  # from Python, a number of seconds
        number = values["time_budget"]
        raise UsageError(
            f'{path}: time_budget: {number} has no unit: write "{number}s" or "{number}m"'
        )
    if isinstance(values.get("memory"), int | float):  # from Python, a number of bytes
        number = values["memory"]
        raise UsageError(
            f'{path}: memory: {number} has no unit: write "{number}GiB" or "{number}MB"'
        )
    for name, value in values.items():
        _valid(name, value, f"{path}: {name}")
    return {name: Setting(value, str(path)) for name, value in values.items()}


def _environment(environ: Mapping[str, str]) -> dict[str, Setting]:
    settings = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX):
            _refuse_misspelt(variable)
            continue
        name = variable.removeprefix(PREFIX).lower()
        _known(name, f"environment: unknown option {variable}, that is")
        value = _items(text) if _is_list(name) else text
        _valid(name, value, variable)
        settings[name] = Setting(value, f"environment ({variable})")
    return settings


def _refuse_misspelt(variable: str) -> None:
    """Raise UsageError for LRFC_SEED or LRFC_BUIDL_SEED, which would be ignored in silence."""
    if not variable.startswith("LRFC_") or variable in OTHERS:
        return
    variables = [f"{PREFIX}{name}".upper() for name in OPTIONS]
    prefixed = variable.replace("LRFC_", PREFIX, 1)
    near = like(prefixed if prefixed in variables else variable, variables, cutoff=0.8)
    if near:
        raise UsageError(f"environment: unknown variable '{shown(variable, 60)}'{near}")


def _default(name: str) -> Any:
    return BuildConfig.model_fields[FIELDS.get(name, name)].default


def _items(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _is_list(name: str) -> bool:
    """Whether an option has several values."""
    return get_origin(BuildConfig.model_fields[FIELDS.get(name, name)].annotation) is tuple


def _known(name: str, start: str) -> None:
    """Raise UsageError, whose message begins with ``start``, unless the option exists."""
    if name not in OPTIONS:
        near = like(name, OPTIONS) or f"; known are {', '.join(OPTIONS)}"
        raise UsageError(f"{start} '{shown(name, 60)}'{near}")


def _valid(name: str, value: Any, where: str) -> None:
    try:
        BuildConfig.model_validate({FIELDS.get(name, name): value})
    except ValidationError as error:
        raise UsageError(f"{where}: {problem(error)}") from error


# -- generated files -------------------------------------------------------------------------------

_TEMPLATE_HEAD = f"""\
# Options of lrfc build. To set one, remove the # in front of it. Paths are relative to the
# folder that lrfc is started in.
#
# A flag (--max-macs 50%) overrides the environment ({PREFIX}MAX_MACS=50%), and both
# override this file. lrfc config --resolved shows the values of all options.
#
# For your safety, package.module:function, a device by its path, unsafe_load and out are
# refused in this file: use a flag or the environment. (A file that --config names may set
# out.)"""


def template() -> str:
    """Return an lrfc.toml that sets nothing: every option, its help and its default, commented."""
    lines = [_TEMPLATE_HEAD]
    for name, option in OPTIONS.items():
        default = _default(name)
        unset = default in (None, ())
        lines += ["", f"# {option.help}"]
        if not unset or "By default" not in option.help:
            lines += [f"# Default: {'none' if unset else _toml(default)}."]
        lines += [f"# {name} = {_toml(option.example if unset else default)}"]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # JSON's strings, lists, numbers and booleans are valid TOML.
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def init(path: Path, *, force: bool = False) -> Path:
    """Write the template to the path; UsageError when it exists, unless ``force``."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; --force replaces it")
    return files.write(path, template(), way_out="name another file")


def schema() -> dict[str, Any]:
    """Return the JSON Schema of lrfc.toml."""
    generated = BuildConfig.model_json_schema(mode="validation")
    properties = {}
    for name, option in OPTIONS.items():
        field = generated["properties"][FIELDS.get(name, name)]
        properties[name] = _property(field) | {"description": option.help}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": NAME,
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    } | ({"$defs": generated["$defs"]} if "$defs" in generated else {})


def _property(field: dict[str, Any]) -> dict[str, Any]:
    """Return a property of the schema without null, which TOML does not have."""
    types = [type_ for type_ in field.get("anyOf", []) if type_ != {"type": "null"}]
    if types:
        field = {
            **{key: value for key, value in field.items() if key != "anyOf"},
            **(types[0] if len(types) == 1 else {"anyOf": types}),
        }
    return {
        key: value
        for key, value in field.items()
        if key != "title" and not (key == "default" and value is None)
    }


def schema_text() -> str:
    """Return the content of lrfc.schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def keywords_text() -> str:
    """Return the content of keywords.py: the ``**options`` of ``lrfc.build``, for type checkers."""
    properties = BuildConfig.model_json_schema(mode="validation")["properties"]
    lines = []
    for name in (name for name in OPTIONS if name not in NAMED):
        field = properties[FIELDS.get(name, name)]
        annotation = _python(field)
        # The schema of a budget has its text and its number only, not null.
        none = " | None" if field["default"] is None and not annotation.endswith("None") else ""
        lines.append(f"    {name}: {annotation}{none}")
    return "\n".join([_KEYWORDS_HEAD, *lines]) + "\n"


def _python(field: dict[str, Any]) -> str:
    """Return the type annotation for a property of the schema."""
    if "anyOf" in field:
        return " | ".join(map(_python, field["anyOf"]))
    if "enum" in field:
        return f"Literal[{', '.join(map(json.dumps, field['enum']))}]"
    if field["type"] == "array":
        item = _python(field["items"])
        return f"list[{item}] | tuple[{item}, ...]"
    if field.get("format") == "path":
        return "str | Path"
    names = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
    return "None" if field["type"] == "null" else names[field["type"]]


def build_options(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the arguments of ``lrfc.build``: every option that is not at its default."""
    return {
        name: setting.value for name, setting in settings.items() if setting.source != "default"
    }


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    KEYWORDS.write_text(keywords_text(), encoding="utf-8")
