"""The commands ``lrfc devices``: device profiles, checks, calibration and measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrfc.cli.session import session

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, add, check and calibrate the devices that models are built for.",
)

Name = Annotated[
    str, typer.Argument(help="A name from lrfc devices list, or a .toml file.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.command("list")
def every(as_json: Json = False) -> None:
    """List the devices that ship with lrfc, and your own."""
    with session() as terminal:
        from lrfc.cli import devices_view
        from lrfc.targets.devices import device

        devices_view.profiles(terminal, device.known(), device.SHIPPED, as_json=as_json)


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Print every key of a device profile, and the path of its file."""
    with session() as terminal:
        from lrfc.cli import devices_view
        from lrfc.targets.devices import device

        devices_view.profile(terminal, device.path_of(name), device.load(name), as_json=as_json)


@app.command()
def add(
    file: Annotated[
        Path,
        typer.Argument(
            help="A device profile, a .toml file like those that ship with lrfc.",
            show_default=False,
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace a device of that name.")] = False,
    as_json: Json = False,
) -> None:
    """Check a device profile and add it under its name."""
    with session() as terminal:
        from lrfc.targets.devices import device

        place = device.add(file, force=force)
        if as_json:
            terminal.json({"name": place.stem, "path": str(place)})
        else:
            terminal.line(
                f"device '{place.stem}' added: {place}; check it with lrfc devices check"
                f" {place.stem}"
            )


@app.command()
def check(name: Name, as_json: Json = False) -> None:
    """Connect to a device and print its machine, its runtimes and its free storage."""
    with session() as terminal:
        from lrfc.cli import devices_view
        from lrfc.targets.devices import device
        from lrfc.targets.devices.runners import runner

        profile = device.load(name)
        with runner(profile) as connected:
            facts = connected.check()
        devices_view.facts(terminal, profile, facts, as_json=as_json)


@app.command()
def calibrate(
    name: Name,
    formats: Annotated[
        list[str],
        typer.Option(
            "--format",
            help="tflite or onnx; may be repeated. By default all formats that the device runs.",
        ),
    ] = [],  # noqa: B006
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16, dynamic, int8 or int16x8; by default that of the device."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the runtime; by default those of the device.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again instead of reusing earlier measurements.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure small networks on a device and fit its cost profile, for predictions in builds."""
    with session() as terminal:
        from lrfc.cli import devices_view
        from lrfc.targets import calibrate as calibration
        from lrfc.targets.devices import device

        profile = device.load(name)
        report = calibration.calibrate(
            profile,
            formats=formats or None,
            precision=precision,
            threads=threads,
            fresh=fresh,
            progress=terminal.progress(),
        )
        devices_view.calibration(terminal, report, as_json=as_json)


@app.command()
def history(
    name: Annotated[
        str | None, typer.Argument(help="Only the measurements of this device.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the stored measurements, which later builds reuse."""
    with session() as terminal:
        from lrfc.cli import devices_view
        from lrfc.costs.measurements import Store

        devices_view.history(
            terminal, Store(log=terminal.progress().log).history(name), as_json=as_json
        )
