"""The commands for projects and pipelines: init, config, compare and report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lrfc.cli.session import session
from lrfc.config.options import OPTIONS

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help=(
            "Options from this file; by default from lrfc.toml in the current folder, if there is"
            " one."
        ),
    ),
]


def flags(ctx: typer.Context) -> dict[str, Any]:
    """The options of a build that stand on the command line."""
    options = {}
    for name, value in ctx.params.items():
        source = ctx.get_parameter_source(name)
        if name in OPTIONS and source is not None and source.name == "COMMANDLINE":
            value = value.split(",") if OPTIONS[name].commas else value
            options[name] = tuple(value) if isinstance(value, list) else value
    return options


def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("lrfc.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
) -> None:
    """Write a lrfc.toml with every option, its help and its default, for lrfc build."""
    with session() as terminal:
        from lrfc.config import resolve as settings

        terminal.line(
            f"written: {settings.init(file, force=force)}; every line of it is a comment; remove a"
            " # to set an option"
        )


def config(
    file: Config = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Also print the options that keep their default.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of lrfc.toml instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the options of lrfc build in this folder without flags, and the source of each."""
    with session() as terminal:
        from lrfc.cli import project_view
        from lrfc.config import resolve as settings

        if schema:
            terminal.json(settings.schema())
            return
        options = {
            name: setting
            for name, setting in settings.resolve({}, file, os.environ).items()
            if resolved or setting.source != "default"
        }
        project_view.settings(terminal, options, as_json=as_json)


def compare(
    before: Annotated[
        Path,
        typer.Argument(
            help="An output folder, a manifest.json, or a .keras, .h5, .tflite or .onnx file.",
            show_default=False,
        ),
    ],
    after: Annotated[
        Path, typer.Argument(help="Another one, to compare with the first.", show_default=False)
    ],
    max_regress: Annotated[
        list[str],
        typer.Option(
            help=(
                "Largest allowed loss: latency=5%, accuracy=0.5pp, speedup, size, macs, params,"
                " ram, cycles; may be repeated."
            )
        ),
    ] = [],  # noqa: B006
    junit: Annotated[
        Path | None, typer.Option(help="Write the limits as test cases to this JUnit XML file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the figures and the layers of two builds or models.

    The exit code is 4 when a figure got worse by more than --max-regress allows.
    """
    with session() as terminal:
        from lrfc.cli import project_view
        from lrfc.errors import BudgetError
        from lrfc.results import compare as comparison
        from lrfc.system import files

        if junit is not None:
            files.check(junit, way_out="name another file with --junit")
        result = comparison.compare(before, after, max_regress)
        if junit is not None:
            files.write(junit, result.junit(), way_out="name another file with --junit")
        project_view.compared(terminal, result, as_json=as_json)
        regressions = [verdict.detail for verdict in result.verdicts if not verdict.ok]
        if regressions:
            raise BudgetError(f"regressed: {'; '.join(regressions)}")


def report(
    folder: Annotated[
        Path, typer.Argument(help="An output folder of lrfc build.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Render report.html again from the files of an output folder."""
    with session() as terminal:
        from lrfc.results.manifest import Manifest

        Manifest.read(folder)  # fails before the slow import of the report
        from lrfc.results.report import page

        place = page.write(folder)
        if as_json:
            terminal.json({"path": str(place)})
        else:
            terminal.line(f"written: {place}")


def add(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (compare, report, init, config):
        app.command()(command)
