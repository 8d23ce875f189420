"""Checks of a call before TensorFlow, or anything else slow, is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrfc.config import build as config
from lrfc.config import trust
from lrfc.config.build import HOST, BuildConfig, frontier
from lrfc.config.formats import FORMATS, suffixes
from lrfc.config.formats import check as check_format
from lrfc.config.options import OPTIONS
from lrfc.config.precision import listed, of
from lrfc.engine.replay import Locked
from lrfc.errors import DependencyError, ModelError, UsageError
from lrfc.results import folder as artifact
from lrfc.results.report.command import FROM_PYTHON
from lrfc.system.reader import kind, located, opened, shown
from lrfc.targets.devices import device as devices
from lrfc.targets.devices.device import Device
from lrfc.targets.ethos_u.modes import configured

#: Arguments of a build that are no options; they are suggested for a misspelt name.
_OTHERS = ("model", "locked", "progress", "on_result")
#: Largest file that is opened, bytes.
_LARGEST = 1 << 40


@dataclass(frozen=True)
class Goal:
    """One file to emit: its format and precision, and its device.

    ``name``: of its output folder where a build has several destinations.

    ``int8_io``: int8 inputs and outputs.
    """

    format: str
    precision: str
    device: Device
    threads: int
    name: str
    int8_io: bool = False


@dataclass(frozen=True)
class Request:
    """A requested build, checked as far as possible without loading its model.

    ``model``: a path or a Keras model; ``data``, ``test_data``: as the user passed them.
    ``folders``: one for each goal. ``single``: return one result, not a tuple. ``locked``: the
    build to repeat.
    """

    model: Any
    config: BuildConfig
    goals: tuple[Goal, ...]
    folders: tuple[Path, ...]
    data: Any
    test_data: Any
    single: bool
    locked: Locked | None = None


def build(model: Any, given: Mapping[str, Any], locked: Path | str | None = None) -> Request:
    """Check the options of a build; UsageError or ModelError for what can be refused here.

    ``given``: the user's options by their names on the command line, without defaults.
    """
    config.known(given, [*OPTIONS, *_OTHERS])
    repeated = None if locked is None else Locked.read(located(locked))
    options = dict(given) if repeated is None else _merged(repeated, given)
    if model is None:
        if repeated is None:
            raise UsageError(
                "no model is given: name a .keras or .h5 file, or with --locked a manifest.json"
                " that names one"
            )
        model = repeated.model()
    _check_model(model)
    if repeated is not None:
        options.setdefault("out", Path(f"{name(model)}-locked"))
    targets, devices_ = (_names(options.pop(option, None)) for option in ("target", "device"))
    data, test_data = (options.pop(option, None) for option in ("data", "test_data"))
    precision = options.pop("precision", None)
    checked = config.parse(
        **options,
        targets=(),
        devices=devices_,
        data=_source(data),
        test_data=_source(test_data),
    )
    destinations = goals(
        targets,
        devices_,
        precision,
        checked.threads,
        int8_io=checked.int8_io,
        memory_mode=checked.memory_mode,
        system_config=checked.system_config,
    )
    checked = checked.model_copy(update={"targets": targets, "precision": precision})
    _check_together(checked, destinations, data)
    _check_named(model, checked.metric, data, test_data)
    return Request(
        model=model,
        config=checked,
        goals=tuple(destinations),
        folders=_folders(model, destinations, checked.out),
        data=data,
        test_data=test_data,
        single=not any(_is_list(given.get(option)) for option in ("target", "device")),
        locked=repeated,
    )


def explore(
    model: Any,
    data: Any,
    device: str | None,
    over: Sequence[str],
    points: int,
    out: Path | str | None,
    options: Mapping[str, Any],
) -> tuple[BuildConfig, Goal, Path]:
    """Check the options of an exploration; its configuration, destination and folder."""
    config.known(options, [*OPTIONS, "over", "points"])
    _check_model(model)
    checked = config.parse(**options)
    frontier(over)
    if not 2 <= points <= config.MOST_POINTS:
        raise UsageError(f"--points: {points} is out of range: 2 to {config.MOST_POINTS:,}")
    (goal,) = goals((), _names(device), checked.precision, checked.threads)
    _check_named(model, None, data)
    folder = located(out) if out is not None else Path(f"{name(model)}-explore")
    artifact.check(folder.absolute())
    return checked, goal, folder


def inspect(model: Any) -> None:
    """Check a model without loading it."""
    _check_model(model)


def measure(
    files: Sequence[Path | str],
    device: str | Path,
    memory_mode: str | None,
    system_config: str | None,
    threads: int | None,
    runs: int,
) -> tuple[Device, tuple[tuple[Path, str], ...]]:
    """Check the files and options of a measurement; the device, and each file with its format."""
    for flag, value, most in (
        ("--runs", runs, config.MOST_RUNS),
        ("--threads", threads, config.MOST_THREADS),
    ):
        if value is not None and not 1 <= value <= most:
            raise UsageError(f"{flag}: {value} is out of range: 1 to {most:,}")
    (chosen,) = configured(
        [devices.load(device)], memory_mode=memory_mode, system_config=system_config
    )
    formats = suffixes()
    if not files:
        raise UsageError(f"no file is given; name a {' or '.join(formats)} file")
    for file in map(Path, files):
        if kind(file) is None:
            raise UsageError(f"{shown(file)}: no such file")
        if file.suffix not in formats:
            raise UsageError(
                f"{shown(file)} is no {' or '.join(formats)} file; emit one with lrfc build"
            )
        if formats[file.suffix] not in chosen.formats:
            raise UsageError(
                f"device '{chosen.name}' runs {' and '.join(chosen.formats)} files, not"
                f" {shown(file)}"
            )
        opened(file, limit=_LARGEST).close()
    return chosen, tuple((Path(file), formats[Path(file).suffix]) for file in files)


def goals(
    targets: Sequence[str],
    names: Sequence[str],
    precision: str | None,
    threads: int | None,
    *,
    int8_io: bool = False,
    memory_mode: str | None = None,
    system_config: str | None = None,
) -> list[Goal]:
    """Every target on every device that runs it, with the defaults of the device.

    ``int8_io``: int8 inputs and outputs. ``memory_mode``, ``system_config``: for the devices with a
    vela connection. UsageError when a device is unknown, runs none of the targets or does not
    compute in that precision; when a target lacks that precision or those inputs; and when Vela
    lacks that mode or configuration.
    """
    for form in targets:
        check_format(form, "fp32")  # an unknown format is refused before anything else
    if precision is not None:
        of(precision)
    destinations = []
    for device in configured(
        [devices.load(name) for name in names or (HOST,)],
        memory_mode=memory_mode,
        system_config=system_config,
    ):
        formats = (
            [form for form in targets if form in device.formats] if targets else [device.formats[0]]
        )
        if not formats:
            raise UsageError(
                f"device '{device.name}' runs {' and '.join(device.formats)} files, not"
                f" {', '.join(targets)}; leave out --target"
            )
        chosen = precision or device.precisions[0]
        if chosen not in device.precisions:
            raise UsageError(
                f"device '{device.name}' computes in {listed(device.precisions, 'and')}, not in"
                f" {chosen}; leave out --precision"
            )
        for form in formats:
            check_format(form, chosen, int8_io=int8_io)
            label = (
                form if not names else device.name if len(formats) == 1 else f"{device.name}-{form}"
            )
            goal = Goal(form, chosen, device, threads or device.threads, label, int8_io)
            destinations.append(goal)
    return destinations


def name(model: Any) -> str:
    """The name of a model, which output folders and files begin with."""
    return Path(model).stem if isinstance(model, str | Path) else str(model.name)


# -- parts -----------------------------------------------------------------------------------------


def _is_list(value: Any) -> bool:
    """Whether an option was given several values."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """The distinct names in the value of an option."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(dict.fromkeys(value))


def _source(data: Any) -> str | None:
    """The text that the configuration records for data."""
    if data is None:
        return None
    return str(data) if isinstance(data, str | Path) else FROM_PYTHON


def _merged(locked: Locked, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a build to repeat, overridden by the user's."""
    options = locked.options(given)
    for option in ("data", "test_data"):
        if options.get(option) is not None and str(options[option]) == FROM_PYTHON:
            raise UsageError(
                f"{locked.path}: that build's {option} came from Python; give the same with"
                f" --{option.replace('_', '-')}"
            )
    return options


def _check_model(model: Any) -> None:
    """Raise ModelError or UsageError for a model, by its type or the first bytes of its file."""
    if not isinstance(model, str | Path):
        if not all(hasattr(model, attribute) for attribute in ("name", "layers")):
            raise UsageError(
                "a model is the path of a .keras or .h5 file, or a Keras model, not"
                f" {type(model).__name__}"
            )
        return
    entry = kind(model)
    if entry is None:
        raise UsageError(f"{shown(model)}: no such file")
    if entry == "a folder":
        raise ModelError(
            f"{shown(model)} is a folder: lrfc reads .keras and .h5 files; load it with the"
            " TensorFlow that wrote it and save it with model.save('model.keras')"
        )
    with opened(model, limit=_LARGEST) as file:
        start = file.read(8)
    if not start.startswith(b"PK") and start != b"\x89HDF\r\n\x1a\n":
        raise ModelError(
            f"{shown(model)} is not a Keras model: it is neither a .keras archive nor an HDF5 file"
        )


def _check_named(model: Any, metric: str | None, *data: Any) -> None:
    """Check data and functions that the user names, without reading or running them."""
    sources = [str(source) for source in data if isinstance(source, str | Path)]
    own_metric = None if metric is None else trust.METRIC.fullmatch(metric)
    if not sources and own_metric is None:
        return
    from lrfc.data import specs  # imports numpy

    if own_metric is not None:
        specs.function(own_metric["function"], "metric")
    archive = (
        Path(model) if isinstance(model, str | Path) and Path(model).suffix == ".keras" else None
    )
    for source in sources:
        specs.data(source, archive)


def _check_together(checked: BuildConfig, destinations: Sequence[Goal], data: Any) -> None:
    """Raise UsageError for options that exclude each other, DependencyError for a package."""
    if checked.objective == "cycles":
        for goal in destinations:
            if not goal.device.tells_ops:
                raise UsageError(
                    f"--objective cycles: device '{goal.device.name}' is timed in milliseconds;"
                    " take --objective latency"
                )
    if not checked.finetunes:
        _check_untrained(checked)
    if not checked.qat:
        return
    untrained = [
        goal for goal in destinations if goal.precision not in FORMATS[goal.format].trained
    ]
    others = [f"{goal.format} {goal.precision}" for goal in untrained]
    if others:
        raise UsageError(
            f"--qat goes with --target tflite and --precision int8, not {' and '.join(others)}"
        )
    if data is None:
        raise UsageError(
            "--qat trains the network, and there is too little to train on: give --data, or leave"
            " out --qat"
        )
    if importlib.util.find_spec("tensorflow_model_optimization") is None:
        raise DependencyError(
            "--qat needs tensorflow-model-optimization; install it with: pip install 'lrfc[qat]'"
        )


def _check_untrained(checked: BuildConfig) -> None:
    """Raise UsageError for options of a fine-tune that does not take place."""
    for option, given in (
        ("--training compiled", checked.training == "compiled"),
        ("--class-weights balanced", checked.class_weights == "balanced"),
        ("--log-dir", checked.log_dir is not None),
    ):
        if given:
            raise UsageError(f"{option} has no effect with --epochs 0: leave one of them out")


def _folders(model: Any, destinations: Sequence[Goal], out: Path | None) -> tuple[Path, ...]:
    """The output folder of each destination; UsageError when one must not be replaced."""
    if out is None:
        out = Path(f"{name(model)}-lrfc")
    folders = (out,) if len(destinations) == 1 else tuple(out / goal.name for goal in destinations)
    for folder in folders:
        artifact.check(folder.expanduser().absolute())
    return folders
