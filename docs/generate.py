"""MkDocs hook: generate the pages of the reference from the code.

``python docs/generate.py FOLDER`` writes the same pages as files. They are not in the repository,
so no page shows an option, a field or an exit code that the code does not have.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

import lrfc
from lrfc import api as calls
from lrfc import errors, state
from lrfc.cli import app as cli
from lrfc.config import resolve as settings
from lrfc.config.build import BuildConfig
from lrfc.config.keywords import BuildOptions
from lrfc.config.options import OPTIONS
from lrfc.engine import package as ship
from lrfc.factorization import METHODS, support_table
from lrfc.metrics import outcome
from lrfc.results import compare as comparison
from lrfc.results import manifest
from lrfc.targets.devices import device

ROOT = Path(__file__).resolve().parent.parent
#: Files of the repository that pages show, and their paths in the site.
SHOWN = {"examples/result.svg": "result.svg"}


def pages() -> dict[str, str]:
    """Return the Markdown of every generated page, by its path in the site."""
    makers: dict[str, Callable[[], str]] = {
        "cli": command_line,
        "lrfc-toml": options,
        "manifest": manifest_fields,
        "device-profile": device_fields,
        "support-matrix": matrix,
        "exit-codes": exit_codes,
        "python": api,
    }
    return {f"reference/{name}.md": make() for name, make in makers.items()}


def on_files(files: Any, *, config: Any) -> Any:
    """Handle MkDocs' event: add the pages, and the files of the repository that they show."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for source, path in SHOWN.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
    return files


# -- command line ----------------------------------------------------------------------------------


def commands(group: Any = None, above: str = "lrfc") -> dict[str, Any]:
    """Return every command by its full name; the commands of a group are together."""
    found: dict[str, Any] = {}
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{above} {name}")
        else:
            found[f"{above} {name}"] = command
    return found


def command_line() -> str:
    """Return the page of all commands and options."""
    parts = [
        "# Command line",
        (
            "`lrfc --help` and `lrfc COMMAND --help` print the same. `lrfc --version` prints the"
            " version; `lrfc --install-completion` installs completion of\ncommands and options"
            " for the shell. Results go to stdout, everything else to stderr. With `--json`,"
            " stdout is one JSON object."
        ),
    ]
    for name, command in commands().items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        flags = [
            p
            for p in command.params
            if p.param_type_name == "option" and not p.hidden and p.name != "help"
        ]
        usage = " ".join(
            [
                name,
                *(_placeholder(argument) for argument in arguments),
                *(["[OPTIONS]"] if flags else []),
            ]
        )
        parts += [f"## {name}", f"    {usage}", _sentence(command.help)]
        if arguments:
            parts.append(
                _table(
                    ("argument", ""), [(f"`{a.name.upper()}`", _cell(a.help)) for a in arguments]
                )
            )
        if flags:
            parts.append(
                _table(
                    ("option", "", "default"),
                    [(_names(flag), _cell(flag.help), _default(flag)) for flag in flags],
                )
            )
    return "\n\n".join(parts) + "\n"


def _placeholder(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _names(flag: Any) -> str:
    if flag.is_flag:
        return " ".join(f"`{name}`" for name in (*flag.opts, *flag.secondary_opts))
    return f"`{flag.opts[0]} {_word(flag)}`"


def _word(flag: Any) -> str:
    kind = flag.type_descriptor.annotation
    return {"int": "N", "Path": "PATH"}.get(getattr(kind, "__name__", ""), "TEXT")


def _default(flag: Any) -> str:
    if flag.is_flag and flag.secondary_opts and flag.default is not None:
        return f"`{(flag.opts if flag.default else flag.secondary_opts)[0]}`"
    return "" if flag.default in (None, [], (), False) else f"`{flag.default}`"


# -- lrfc.toml -------------------------------------------------------------------------------------


def options() -> str:
    """Return the page of all options of a build, as in lrfc.toml."""
    properties = settings.schema()["properties"]
    rows = [
        (
            f"`{name}`",
            _type(properties[name], {}),
            _cell(option.help),
            _json(properties[name].get("default")),
            f"`{settings.PREFIX}{name.upper()}`",
        )
        for name, option in OPTIONS.items()
    ]
    return "\n\n".join(
        [
            "# lrfc.toml",
            (
                "The options of `lrfc build`, in a file. `lrfc init` writes one in which every line"
                " is a comment; `lrfc build` reads `lrfc.toml` in the current folder,\nor the file"
                " that `--config` names. A flag overrides the environment, which overrides the"
                " file, which overrides the default. `lrfc config`\nprints the values with their"
                " sources, and `lrfc config --schema` the JSON Schema, which also ships as"
                " `lrfc/config/lrfc.schema.json`."
            ),
            "An unknown key is an error, which names the nearest known key.",
            _table(("key", "value", "", "default", "environment"), rows),
            "## A file with every option",
            f"```toml\n{settings.template().strip()}\n```",
        ]
    )


# -- schemas ---------------------------------------------------------------------------------------


def manifest_fields() -> str:
    """Return the page of all fields of manifest.json."""
    return "\n\n".join(
        [
            "# manifest.json",
            (
                "The record of a build. A value that was not measured is null, never zero. The JSON"
                " Schema ships as `lrfc/results/manifest.schema.json`. Within\n`schema_version` 1,"
                " fields may be added, but none changes its meaning."
            ),
            *_records(manifest.schema(), "Manifest", manifest, outcome, written=True),
        ]
    )


def device_fields() -> str:
    """Return the page of all keys of a device profile."""
    schema = json.loads(device.schema_text())
    return "\n\n".join(
        [
            "# Device profile",
            (
                "A TOML file that describes a device and its connection. `lrfc devices add FILE`"
                " adds it, and `lrfc devices show NAME` prints it.\nThe JSON"
                " Schema ships as `lrfc/targets/devices/device.schema.json`."
            ),
            *_records(schema, "Device", device, written=False),
            "## The profiles that ship",
            *(_profile(*shipped) for shipped in _shipped()),
        ]
    )


def _profile(name: str, path: Path, profile: device.Device) -> str:
    text = path.read_text(encoding="utf-8").strip()
    return f"### {name}\n\n{_sentence(profile.description)}\n\n```toml\n{text}\n```"


def _shipped() -> list[tuple[str, Path, device.Device]]:
    return [(path.stem, path, device.read(path)) for path in sorted(device.SHIPPED.glob("*.toml"))]


def _records(schema: Mapping[str, Any], top: str, *modules: ModuleType, written: bool) -> list[str]:
    """Return a section for each record of a schema, the top one first.

    ``written``: whether lrfc writes the file, so that every field is present.
    """
    defined = {
        top: schema,
        **{name: each for name, each in schema["$defs"].items() if "properties" in each},
    }
    parts = []
    for name, record in defined.items():
        model = next(getattr(module, name) for module in modules if hasattr(module, name))
        notes = _comments(model)
        head = ("field", "value") if written else ("key", "value", "default", "")
        rows = []
        for field, each in record["properties"].items():
            kind = _type(each, defined)
            must = field in record.get("required", []) and "default" not in each
            rows.append(
                (f"`{field}`", kind)
                if written
                else (
                    f"`{field}`",
                    kind,
                    "required" if must else _json(each.get("default")),
                    notes.get(field, ""),
                )
            )
        parts += [f"## {name}", _prose(record["description"]), _table(head[: len(rows[0])], rows)]
    return parts


def _comments(model: type) -> dict[str, str]:
    """Return the ``#:`` comments of a class's fields, above a field or at the end of its line."""
    source = inspect.getsource(model)
    above = re.findall(r"((?:^    #: .*\n)+)    (\w+): ", source, re.MULTILINE)
    behind = re.findall(r"^    (\w+): .*#: (.*)$", source, re.MULTILINE)
    return {name: " ".join(re.findall(r"#: (.*)", text)) for text, name in above} | dict(behind)


def _type(field: Mapping[str, Any], defined: Mapping[str, Any]) -> str:
    """Return a JSON Schema in words; a record is a link to its section."""
    if "$ref" in field or "allOf" in field:
        name = (field.get("$ref") or field["allOf"][0]["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if name in defined else name
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(
            dict.fromkeys(
                _type(each, defined) for each in field.get("anyOf", field.get("oneOf", ()))
            )
        )
    if "const" in field:
        return _json(field["const"])
    if "enum" in field:
        return ", ".join(map(_json, field["enum"]))
    kind = field.get("type")
    if kind == "array":
        items = field.get("items") or {"type": "value"}
        return f"list of {_type(items, defined)}"
    limits = [
        f"{sign} {field[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in field
    ]
    return " ".join([{"object": "table", None: "any"}.get(kind, kind), *limits])


# -- the rest --------------------------------------------------------------------------------------


def matrix() -> str:
    """Return the page of the methods for each kind of layer."""
    return "\n\n".join(
        [
            "# Support matrix",
            (
                "The factorization methods for each kind of layer; `lrfc ops` prints the same. A"
                " number is the reason why a method cannot factorize it. SeparableConv layers are"
                " first split into\ntheir two convolutions. Layers of other kinds are unchanged."
            ),
            support_table(METHODS),
        ]
    )


def exit_codes() -> str:
    """Return the page of the exit codes, from the error classes."""
    found = [
        each
        for each in vars(errors).values()
        if isinstance(each, type)
        and issubclass(each, errors.LrfcError)
        and each is not errors.LrfcError
    ]
    rows = [("0", "", "Done.")]
    rows += [
        (str(each.exit_code), f"`{each.__name__}`", _cell(_prose(inspect.getdoc(each) or "")))
        for each in found
    ]
    rows += [
        ("1", "", "A bug in lrfc: the line says where its details are."),
        ("130", "", "Interrupted (Ctrl-C); nothing is left half-written."),
        ("143", "", "Terminated (SIGTERM); nothing is left half-written."),
    ]
    return "\n\n".join(
        [
            "# Exit codes",
            (
                "Each command ends with one of these. An error is one line on stderr: the fault,"
                " its value, and the remedy. In Python, the errors are classes of\n`lrfc.errors`,"
                " derived from `LrfcError`."
            ),
            _table(("code", "error", ""), sorted(rows, key=lambda row: int(row[0]))),
        ]
    )


def api() -> str:
    """Return the page of the functions and classes of the package."""
    public = {
        f"lrfc.{name}": getattr(lrfc, name) for name in lrfc.__all__ if not name.startswith("__")
    }
    others = [calls.explore, calls.inspect, calls.measure, comparison.compare]
    more = {
        f"{each.__module__}.{each.__name__}": each
        for each in (*others, ship.Result, state.Progress)
    }
    parts = [
        "# Python",
        "`import lrfc` takes no time: TensorFlow is imported by the first build.",
        "## Public names",
    ]
    parts += [_described(name, each) for name, each in public.items()]
    parts += [
        "## Behind them",
        "The classes that a build uses and returns, and the other commands as functions.",
    ]
    parts += [_described(name, each) for name, each in more.items()]
    return "\n\n".join(parts) + "\n"


def _described(name: str, thing: Any) -> str:
    shown = inspect.signature(thing) if not isinstance(thing, type) else None
    call = name.rpartition(".")[2]
    lines = (
        []
        if shown is None
        else [
            "```python",
            f"{call}(",
            *(f"    {each}," for each in _parameters(shown)),
            ")" + _returns(shown),
            "```",
            "",
        ]
    )
    lines.append(_prose(inspect.getdoc(thing) or ""))
    if isinstance(thing, type):
        kinds = inspect.get_annotations(thing)
        lines += [
            "",
            _table(
                ("field", "type"),
                [(f"`{field}`", f"`{kind}`".replace("|", r"\|")) for field, kind in kinds.items()],
            ),
        ]
    return "\n".join([f"### {name}", "", *lines])


def _parameters(signature: inspect.Signature) -> list[str]:
    """Return the parameters of a function, with types and defaults; options one by one."""
    shown: list[str] = []
    for each in signature.parameters.values():
        if each.annotation == f"Unpack[{BuildOptions.__name__}]":
            for name, kind in inspect.get_annotations(BuildOptions).items():
                default = BuildConfig.model_fields[name].default
                shown.append(f"{name}: {kind.__forward_arg__} = {default!r}")
            continue
        if each.kind is each.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        kind = f"{'**' if each.kind is each.VAR_KEYWORD else ''}{each.name}: {each.annotation}"
        shown.append(
            kind
            if each.default is each.empty
            else f"{kind} = {'...' if callable(each.default) else repr(each.default)}"
        )
    return shown


def _returns(signature: inspect.Signature) -> str:
    return (
        f" -> {signature.return_annotation}"
        if signature.return_annotation is not signature.empty
        else ""
    )


# -- Markdown --------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _prose(text: str) -> str:
    """Return a docstring as Markdown."""
    return inspect.cleandoc(text).replace("``", "`")


def _sentence(text: str) -> str:
    return text.strip() + ("" if text.strip().endswith(".") else ".")


def _cell(text: str | None) -> str:
    """Return text for a cell of a table: one line, with | and < escaped."""
    return " ".join((text or "").split()).replace("|", r"\|").replace("<", "&lt;")


def _json(value: Any) -> str:
    return "" if value in (None, [], ()) else f"`{json.dumps(value, ensure_ascii=False)}`"


if __name__ == "__main__":
    for place, page in pages().items():
        target = Path(sys.argv[1], place)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")
