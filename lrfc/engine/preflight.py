"""What can be refused of a call before TensorFlow, or anything else slow, is imported."""

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

#: The arguments of a build that are no options, but may be what was meant.
_OTHERS = ("model", "locked", "progress", "on_result")
_LARGEST = 1 << 40


@dataclass(frozen=True)
class Goal:
    """One file to make: format and precision, and the device that it is for.

    ``name``: of its output folder where a build makes several.

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
    """What a build is asked for, as far as it can be checked without its model.

    ``model``: a path or a Keras model; ``data``, ``test_data`` as they were given. ``folders``: one
    for each goal. ``single``: one result is wanted, not a tuple. ``locked``: the build that is
    repeated.
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
    """The request of a build.

    ``given``: its options by their names on the command line, without those that are left to their
    defaults.
    """
    config.known(given, [*OPTIONS, *_OTHERS])
    followed = None if locked is None else Locked.read(located(locked))
    options = dict(given) if followed is None else _repeated(followed, given)
    if model is None:
        if followed is None:
            raise UsageError(
                "no model is given: name a .keras or .h5 file, or with --locked a manifest.json"
                " that names one"
            )
        model = followed.model()
    _model(model)
    if followed is not None:
        options.setdefault("out", Path(f"{name(model)}-locked"))
    targets, names = (_several(options.pop(each, None)) for each in ("target", "device"))
    several = (given.get(each) for each in ("target", "device"))
    single = not any(isinstance(each, Sequence) and not isinstance(each, str) for each in several)
    data, test_data = (options.pop(each, None) for each in ("data", "test_data"))
    texts = [
        None if each is None else str(each) if isinstance(each, str | Path) else FROM_PYTHON
        for each in (data, test_data)
    ]
    checked = config.parse(
        **{name: value for name, value in options.items() if name != "precision"},
        targets=(),
        devices=names,
        data=texts[0],
        test_data=texts[1],
    )
    wanted = goals(
        targets,
        names,
        options.get("precision"),
        checked.threads,
        int8_io=checked.int8_io,
        memory_mode=checked.memory_mode,
        system_config=checked.system_config,
    )
    checked = checked.model_copy(update={"targets": targets, "precision": options.get("precision")})
    _together(checked, wanted, data)
    _named(model, checked.metric, data, test_data)
    return Request(
        model,
        checked,
        tuple(wanted),
        _folders(model, wanted, checked.out),
        data,
        test_data,
        single,
        followed,
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
    """The options of an exploration, the destination that it is for, and its folder."""
    config.known(options, [*OPTIONS, "over", "points"])
    _model(model)
    checked = config.parse(**options)
    frontier(over)
    if not 2 <= points <= config.MOST_POINTS:
        raise UsageError(f"--points: {points} is out of range: 2 to {config.MOST_POINTS:,}")
    (goal,) = goals((), _several(device), checked.precision, checked.threads)
    _named(model, None, data)
    folder = located(out) if out is not None else Path(f"{name(model)}-explore")
    artifact.check(folder.absolute())
    return checked, goal, folder


def inspect(model: Any) -> None:
    """Raise what can be said of a model without loading it."""
    _model(model)


def measure(
    files: Sequence[Path | str],
    device: str | Path,
    memory_mode: str | None,
    system_config: str | None,
    threads: int | None,
    runs: int,
) -> tuple[Device, tuple[tuple[Path, str], ...]]:
    """The device, and each file with its format."""
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
            other = f"{shown(file)} is no {' or '.join(formats)} file"
            raise UsageError(f"{other}; emit one with lrfc build")
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
    """Every target on every device that runs it, the defaults being those of the device.

    ``int8_io``: int8 inputs and outputs. ``memory_mode``, ``system_config``: of the devices that
    Vela reaches. UsageError when a device is unknown, when it runs none of the targets, when it
    does not compute in that precision, when a target has not that precision or those inputs, and
    when Vela does not know that mode or configuration.
    """
    for form in targets:
        check_format(form, "fp32")  # an unknown one is named before anything else
    if precision is not None:
        of(precision)
    found = []
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
            found.append(Goal(form, chosen, device, threads or device.threads, label, int8_io))
    return found


def name(model: Any) -> str:
    """What output folders and files are named after."""
    return Path(model).stem if isinstance(model, str | Path) else str(model.name)


# -- parts -------------------------------------------------------------------------------------------------------------------------


def _several(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return (
        () if given is None else (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))
    )


def _repeated(locked: Locked, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the build that is repeated, and over them those that are given."""
    options = locked.options(given)
    for each in ("data", "test_data"):
        if options.get(each) is not None and str(options[each]) == FROM_PYTHON:
            raise UsageError(
                f"{locked.path}: that build's {each} came from Python; give the same with"
                f" --{each.replace('_', '-')}"
            )
    return options


def _model(model: Any) -> None:
    """Raise what can be said of a model without loading it: of a file by its first bytes."""
    if not isinstance(model, str | Path):
        if not all(hasattr(model, each) for each in ("name", "layers")):
            raise UsageError(
                "a model is the path of a .keras or .h5 file, or a Keras model, not"
                f" {type(model).__name__}"
            )
        return
    what = kind(model)
    if what is None:
        raise UsageError(f"{shown(model)}: no such file")
    if what == "a folder":
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


def _named(model: Any, metric: str | None, *data: Any) -> None:
    """Raise what can be said of named data and functions without reading or running them."""
    texts = [str(each) for each in data if isinstance(each, str | Path)]
    own = None if metric is None else trust.METRIC.fullmatch(metric)
    if not texts and own is None:
        return
    from lrfc.data import specs  # which needs numpy

    if own is not None:
        specs.function(own["function"], "metric")
    archive = (
        Path(model) if isinstance(model, str | Path) and Path(model).suffix == ".keras" else None
    )
    for text in texts:
        specs.data(text, archive)


def _together(checked: BuildConfig, wanted: Sequence[Goal], data: Any) -> None:
    """Raise UsageError for options that do not go together."""
    if checked.objective == "cycles":
        for goal in wanted:
            if not goal.device.tells_ops:
                raise UsageError(
                    f"--objective cycles: device '{goal.device.name}' is timed in milliseconds;"
                    " take --objective latency"
                )
    if not checked.qat:
        return
    untrained = [goal for goal in wanted if goal.precision not in FORMATS[goal.format].trained]
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


def _folders(model: Any, wanted: Sequence[Goal], out: Path | None) -> tuple[Path, ...]:
    """The output folder of each destination; UsageError when one may not be replaced."""
    if out is None:
        out = Path(f"{name(model)}-lrfc")
    folders = (out,) if len(wanted) == 1 else tuple(out / goal.name for goal in wanted)
    for folder in folders:
        artifact.check(folder.expanduser().absolute())
    return folders
