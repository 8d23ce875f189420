"""The commands of lrfc. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrfc.cli import devices as cli_devices
from lrfc.cli import project as cli_project
from lrfc.cli.build_options import with_options
from lrfc.cli.project import Config, flags
from lrfc.cli.session import run, session
from lrfc.config.build import BuildConfig
from lrfc.config.options import text
from lrfc.errors import DeviceError

if TYPE_CHECKING:
    from lrfc.engine.package import Result

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
    help=(
        "Compress a trained Keras model by low-rank factorization and pruning for the device that"
        " it runs on, and measure the gain."
    ),
)
app.add_typer(cli_devices.app, name="devices")

OptionalModel = Annotated[
    Path | None,
    typer.Argument(
        help=(
            "The trained model: a .keras or legacy .h5 file. With --locked, by default the model of"
            " the manifest."
        ),
        show_default=False,
    ),
]
Model = Annotated[
    Path, typer.Argument(help="The trained model: a .keras or legacy .h5 file.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Unsafe = Annotated[bool, typer.Option("--unsafe-load", help=text("unsafe_load"))]


@app.command()
@with_options(BuildConfig)
def build(
    ctx: typer.Context,
    model: OptionalModel = None,
    *,
    config: Config = None,
    locked: Annotated[Path | None, typer.Option(
        help="Repeat the build of this manifest.json with its options, methods and ranks, without a"
        " search.",
    )] = None,
    as_json: Json = False,
    **_options: Any,
) -> None:  # fmt: skip
    """Compress MODEL, emit the file, measure it against the original, write the output folder."""
    with session() as terminal:
        from lrfc import api
        from lrfc.cli import build_view
        from lrfc.config import resolve as settings

        options = settings.resolve(flags(ctx), config, os.environ)
        if locked is not None and config is None:  # lrfc.toml in this folder may have changed since
            options = {
                name: option for name, option in options.items() if option.source != settings.NAME
            }
        progress = terminal.progress()
        for line in settings.described(options):
            progress.log(line)
        results: list[Result] = []
        try:
            api.build(
                model,
                locked=locked,
                progress=progress,
                on_result=results.append,
                **settings.build_options(options),
            )
        finally:  # a build that misses its budget has a result, too
            build_view.results(terminal, results, as_json=as_json)


@app.command()
def explore(
    model: Model,
    data: Annotated[str | None, typer.Option(help=text("data"))] = None,
    methods: Annotated[str | None, typer.Option(
        help="Methods to compare, separated by commas; by default, those of lrfc build.",
    )] = None,
    keep: Annotated[list[str], typer.Option(help=text("keep"))] = [],  # noqa: B006
    only: Annotated[list[str], typer.Option(help=text("only"))] = [],  # noqa: B006
    over: Annotated[str, typer.Option(
        help="Quantities of the Pareto front, besides the divergence: macs, params, ram, latency,"
        " or several of them, separated by commas.",
    )] = "macs",
    device: Annotated[str | None, typer.Option(
        help="Device to predict latencies for: a name from lrfc devices list, or a .toml.",
    )] = None,
    points: Annotated[int, typer.Option(help="Number of budgets with a plan each.", min=2)] = 24,
    rank_multiple: Annotated[int, typer.Option(help=text("rank_multiple"))] = 1,
    seed: Annotated[int, typer.Option(help="Seed of splits and samples.")] = 0,
    memory: Annotated[str | None, typer.Option(help=text("memory"))] = None,
    out: Annotated[Path | None, typer.Option(
        help="Output folder; by default, MODEL-explore.",
    )] = None,
    unsafe_load: Unsafe = False,
    resume: Annotated[bool, typer.Option(help=text("resume"))] = True,
    profile: Annotated[bool, typer.Option(
        "--profile", help="Record where the time goes, by stage and layer, in pareto.json.",
    )] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Compare the factorization methods on MODEL, without building anything.

    The output folder has the Pareto fronts, every candidate, and a page that shows them.
    """
    with session() as terminal:
        from lrfc import api
        from lrfc.cli import build_view

        options: dict[str, Any] = (
            {"methods": tuple(methods.split(","))} if methods is not None else {}
        )
        survey = api.explore(
            model,
            data=data,
            keep=tuple(keep),
            only=tuple(only),
            over=tuple(over.split(",")),
            device=device,
            points=points,
            rank_multiple=rank_multiple,
            seed=seed,
            memory=memory,
            out=out,
            unsafe_load=unsafe_load,
            resume=resume,
            profile=profile,
            progress=terminal.progress(),
            **options,
        )
        if as_json:
            terminal.json(survey.to_json())
        else:
            build_view.exploration(terminal, survey, out or Path(f"{model.stem}-explore"))


@app.command()
def explain(
    folder: Annotated[
        Path,
        typer.Argument(help="An output folder of lrfc build or lrfc explore.", show_default=False),
    ],
    layer: Annotated[
        str, typer.Argument(help="The layer, by its name in layers.csv.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Print the candidates of a layer, and why one was chosen and its neighbours were not."""
    with session() as terminal:
        from lrfc.cli import build_view
        from lrfc.results import candidates as choices
        from lrfc.results.manifest import Manifest

        built = Manifest.read(folder).layers if (folder / "manifest.json").is_file() else ()
        explanation = choices.explain(choices.read(folder), layer, built)
        if as_json:
            terminal.json(explanation.to_json())
        else:
            build_view.explanation(terminal, explanation)


@app.command()
def inspect(model: Model, as_json: Json = False, unsafe_load: Unsafe = False) -> None:
    """Print the shape, parameters, MACs and memory of each op, and the peak activation memory."""
    with session() as terminal:
        from lrfc import api
        from lrfc.cli import build_view

        profile = api.inspect(model, unsafe=unsafe_load)
        if as_json:
            terminal.json(profile.to_json())
        else:
            build_view.profile(terminal, profile)


@app.command()
def measure(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Emitted .tflite or .onnx files; the first is the baseline.", show_default=False
        ),
    ],
    device: Annotated[
        str, typer.Option(help="Device to measure on: a name from lrfc devices list, or a .toml.")
    ] = "host",
    memory_mode: Annotated[
        str | None,
        typer.Option(
            help=(
                "Memory mode of an Ethos-U, by its name in the vela.ini; by default that of the"
                " device."
            )
        ),
    ] = None,
    system_config: Annotated[
        str | None,
        typer.Option(
            help=(
                "System configuration of an Ethos-U, by its name in the vela.ini; by default that"
                " of the device."
            )
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads that the runtime may use; by default those of the device."),
    ] = None,
    runs: Annotated[int, typer.Option(help="Timed inferences of each file.")] = 200,
    as_json: Json = False,
) -> None:
    """Measure latency and memory of emitted files on a device.

    The runs of the files are interleaved, each file in a fresh process. For a device that is not
    connected, the figures are estimated or compiled instead.
    """
    with session() as terminal:
        from lrfc import api
        from lrfc.cli import devices_view

        try:
            measurements = api.measure(
                files,
                device=device,
                memory_mode=memory_mode,
                system_config=system_config,
                threads=threads,
                runs=runs,
            )
        except DeviceError as error:
            if error.measured:  # print what was measured before the failure
                devices_view.measurements(terminal, error.measured, as_json=as_json)
            raise
        devices_view.measurements(terminal, measurements, as_json=as_json)


@app.command("ops")
def operations(as_json: Json = False) -> None:
    """Print which method factorizes which kind of layer, and the reason where it cannot."""
    with session() as terminal:
        from lrfc.factorization import METHODS, support_matrix, support_table

        if as_json:
            terminal.json(support_matrix(METHODS))
        else:
            terminal.line(support_table(METHODS))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this environment: versions, optional packages, and whether each runtime works."""
    with session() as terminal:
        from lrfc.cli import doctor as checkup

        checks = checkup.run()
        if as_json:
            terminal.json(
                {"checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]}
            )
        else:
            terminal.texts(
                "",
                ("check", "", "detail"),
                [(check.name, "ok" if check.ok else "FAILED", check.detail) for check in checks],
            )
        checkup.require(checks)


cli_project.add(app)


def _version(requested: bool) -> None:
    if requested:
        import lrfc

        typer.echo(lrfc.__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the ``lrfc`` command."""
    run(app)
