"""The command line's ``lrfc devices``: profiles, and what is known of the devices behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrfc.cli.session import session

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The devices that models are built for: list, add, check and calibrate them.",
)

Name = Annotated[
    str, typer.Argument(help="A name of lrfc devices list, or a .toml file.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.command("list")
def every(as_json: Json = False) -> None:
    """List the devices that ship, and your own."""
    with session() as terminal:
        from lrfc.cli import devices_view as terminal_devices
        from lrfc.targets.devices import device

        terminal_devices.profiles(terminal, device.known(), device.SHIPPED, as_json=as_json)


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Print every key of a device's profile, and where it is."""
    with session() as terminal:
        from lrfc.cli import devices_view as terminal_devices
        from lrfc.targets.devices import device

        terminal_devices.profile(terminal, device.path_of(name), device.load(name), as_json=as_json)


@app.command()
def add(
    file: Annotated[
        Path,
        typer.Argument(
            help="A device profile: a .toml by the example of one that ships.", show_default=False
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace a device of that name.")] = False,
    as_json: Json = False,
) -> None:
    """Check a profile and make it known under its name."""
    with session() as terminal:
        from lrfc.targets.devices import device

        place = device.add(file, force=force)
        if as_json:
            terminal.json({"name": place.stem, "path": str(place)})
        else:
            terminal.line(
                f"device '{place.stem}' is known: {place}; lrfc devices check {place.stem} asks it"
            )


@app.command()
def check(name: Name, as_json: Json = False) -> None:
    """Reach a device and ask what it is, which runtimes it has, and how much room."""
    with session() as terminal:
        from lrfc.cli import devices_view as terminal_devices
        from lrfc.targets.devices import device
        from lrfc.targets.devices.runners import runner

        profile = device.load(name)
        with runner(profile) as there:
            found = there.check()
        terminal_devices.facts(terminal, profile, found, as_json=as_json)


@app.command()
def calibrate(
    name: Name,
    formats: Annotated[
        list[str],
        typer.Option(
            "--format",
            help="tflite or onnx; may be given several times. By default all that the device runs.",
        ),
    ] = [],  # noqa: B006
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16, dynamic, int8 or int16x8; by default what the device computes in."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the runtime; by default those of the device.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what earlier calibrations have measured.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure small networks on a device and fit its cost profile, by which later builds predict."""
    with session() as terminal:
        from lrfc.cli import devices_view as terminal_devices
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
        terminal_devices.calibration(terminal, report, as_json=as_json)


@app.command()
def history(
    name: Annotated[
        str | None, typer.Argument(help="Of this device only.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what was measured so far, and is used again by later builds."""
    with session() as terminal:
        from lrfc.cli import devices_view as terminal_devices
        from lrfc.costs.measurements import Store

        terminal_devices.history(
            terminal, Store(log=terminal.progress().log).history(name), as_json=as_json
        )
