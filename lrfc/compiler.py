"""The straight line from a trained model to measured files: load, rewrite, emit, verify, measure, report."""

from __future__ import annotations

import fnmatch
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrfc import artifact
from lrfc import config as options_
from lrfc import front as front_
from lrfc.config import BuildConfig
from lrfc.data import load_data
from lrfc.destinations import HOST, Destination, destinations
from lrfc.errors import LrfcError, ModelError, UsageError
from lrfc.ir import keras_io, keras_load
from lrfc.ir.graph import Graph
from lrfc.line import Line, Stop, bench_of, exploration, pipeline, reasons, weighing
from lrfc.locked import Locked
from lrfc.passes.canonicalise import Canonicalise
from lrfc.passes.price_layers import PriceLayers
from lrfc.passes.profile import Profile, profile
from lrfc.passes.select_ranks import DesignSpace, costs
from lrfc.pipeline import plan, run
from lrfc.report.command import FROM_PYTHON
from lrfc.search.candidates import selected
from lrfc.ship import Result, ship
from lrfc.state import Artifact, Progress, State
from lrfc.survey import SHARES, Survey
from lrfc.targets import device as devices
from lrfc.targets import refusals
from lrfc.targets.measure import Measurement
from lrfc.targets.modes import configured
from lrfc.targets.runners import runner
from lrfc.training import annotate


def build(
    model: Any,
    *,
    target: str | Sequence[str] | None = None,
    device: str | Sequence[str] | None = None,
    data: Any = None,
    test_data: Any = None,
    locked: Path | str | None = None,
    progress: Progress | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
    **options: Any,
) -> Any:
    """Compress a model and write an output folder for each target and device.

    ``model``: path of a .keras or .h5 file, or a Keras model. ``target``: 'tflite' or 'onnx', or several; ``device``: the name of a device profile, or
    several. By default the device is this machine, and the target the first that the device runs. ``data``: what the command line takes, or arrays, a
    dict or a function (see lrfc.data.load_data). ``options``: the fields of lrfc.config.BuildConfig, budgets as on the command line
    (``max_macs="50%"``). ``locked``: the manifest.json of an earlier build, to be repeated: its options hold where none are given, and its methods and ranks
    are taken instead of being searched for; the folder is MODEL-locked by default. ``on_result`` is called with each Result as soon as its folder is written.

    Returns the Result, or a tuple of them when ``target`` or ``device`` is a sequence. Raises a subclass of lrfc.errors.LrfcError; BudgetError and
    NoGainError carry the results, whose folders are written all the same.
    """
    followed = None if locked is None else Locked.read(Path(locked))
    if followed is not None:
        return _repeated(model, followed, progress or Progress(), on_result, _given(target, device, data, test_data) | options)
    return _built(model, target, device, data, test_data, progress, on_result, options)


def _given(target: Any, device: Any, data: Any, test_data: Any) -> dict[str, Any]:
    named = {"target": target, "device": device, "data": data, "test_data": test_data}
    return {name: value for name, value in named.items() if value is not None}


def _repeated(model: Any, locked: Locked, progress: Progress, on_result: Callable[[Result], None], given: Mapping[str, Any]) -> Any:
    """The build of a manifest once more."""
    options = locked.options(given)
    for name in ("data", "test_data"):
        if options.get(name) is not None and str(options[name]) == FROM_PYTHON:
            raise UsageError(f"{locked.path}: that build's {name} came from Python; give the same with --{name.replace('_', '-')}")
    differences = locked.differences()
    if differences:
        progress.log(f"warning: not the versions of {locked.path}, so the bytes may differ: {', '.join(differences)}")
    options.setdefault("out", Path(f"{_name(model)}-locked"))

    def told(result: Result) -> None:
        progress.log(locked.outcome(result.manifest))
        on_result(result)

    named = [options.pop(name, None) for name in ("target", "device", "data", "test_data")]
    target, device = (each[0] if isinstance(each, tuple) and len(each) == 1 else each for each in named[:2])
    return _built(model, target, device, named[2], named[3], progress, told, options, locked)


def _built(
    model: Any, target: str | Sequence[str] | None, device: str | Sequence[str] | None, data: Any, test_data: Any, progress: Progress | None,
    on_result: Callable[[Result], None], options: Mapping[str, Any], locked: Locked | None = None,
) -> Any:  # fmt: skip
    single = not any(isinstance(each, Sequence) and not isinstance(each, str) for each in (target, device))
    names, devices = _several(target), _several(device)
    told = [None if each is None else str(each) if isinstance(each, str | Path) else FROM_PYTHON for each in (data, test_data)]
    goals = destinations(
        names, devices, options.get("precision"), options.get("threads"), int8_io=bool(options.get("int8_io")), memory_mode=options.get("memory_mode"),
        system_config=options.get("system_config"),
    )  # fmt: skip
    config = options_.parse(targets=names, devices=devices, data=told[0], test_data=told[1], **options)
    folders = _folders(model, goals, config.out)
    log: list[str] = []
    progress = _tee(progress or Progress(), log)
    with ExitStack() as stack:
        source, graph = _load(model, unsafe=config.unsafe_load)
        _refuse(graph, [goal.target for goal in goals], config)
        for remark in dict.fromkeys(remark for goal in goals for remark in refusals.remarks(graph, goal.target)):
            progress.log(remark)
        samples = load_data(data, graph, test=test_data, seed=config.seed)
        if config.qat and (samples.synthetic or samples.few):
            raise UsageError("--qat trains the network, and there is too little to train on: give --data, or leave out --qat")
        for note in samples.notes:
            progress.log(note)
        results = []
        try:
            line = Line(source, config, goals, samples, progress, locked)
            state = line.explored(graph)
            for goal, folder in zip(goals, folders, strict=True):
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lrfc-")))
                with bench_of(goal, state, scratch) as bench:
                    drafts, taken = line.drafted(state, goal, bench, scratch)
                results.append(ship(drafts, taken, folder, log))
                on_result(results[-1])
        except Stop:
            return None if single else ()
    failures = [result.failure for result in results if result.failure is not None]
    given: Any = results[0] if single else tuple(results)
    if failures:
        worst = min(failures, key=lambda failure: failure.exit_code)
        worst.result = given
        raise worst
    return given


def explore(
    model: Any, *, data: Any = None, device: str | None = None, over: Sequence[str] = ("macs",), points: int = 24, out: Path | str | None = None,
    progress: Progress | None = None, **options: Any,
) -> Survey:  # fmt: skip
    """Weigh every method and rank of every layer, without building anything, and write the folder of the exploration.

    ``over``: what the Pareto front of pareto.json is drawn over, besides the predicted divergence ('macs', 'params', 'ram', 'latency'). ``device``: the
    one that latencies are predicted for by its cost profile, without measuring; this machine when ``over`` asks for them. ``options``: methods, keep, only,
    precision, threads, rank_multiple, seed, resume, unsafe_load as for ``build``. The folder is MODEL-explore by default.
    """
    config = options_.parse(**options)
    front_.check(over)
    (goal, *_) = destinations((), _several(device), config.precision, config.threads)
    progress = progress or Progress()
    folder = Path(out) if out is not None else Path(f"{_name(model)}-explore")
    artifact.check(folder.expanduser().absolute())
    source, graph = _load(model, unsafe=config.unsafe_load)
    _refuse(graph, (), config)
    samples = load_data(data, graph, seed=config.seed)
    for note in samples.notes:
        progress.log(note)
    state = run(State(graph, graph, samples, config.seed, progress), plan([Canonicalise()]))
    start = time.perf_counter()
    state = run(replace(state, original=state.graph), plan([exploration(config, config.rank_multiple or goal.device.rank_multiple)]))
    if not state.fact(DesignSpace).spaces:
        raise ModelError(f"no layer of model '{graph.name}' can be made smaller: {reasons(state.fact(DesignSpace).skipped)}")
    state = run(state, plan(weighing(goal.target.precision, cached=config.resume), known=(DesignSpace,)))
    if device is not None or "latency" in over:
        prices, begins = goal.profile()
        progress.log(begins or f"latencies are predicted for {goal.device.name}, not measured")
        state = run(state, plan([PriceLayers(prices, slower=True)], known=(DesignSpace,)))
    seconds = time.perf_counter() - start
    found = Survey(
        source.name,
        costs(state),
        state.fact(DesignSpace),
        tuple(over),
        front_.front(state, over, points),
        front_.by_method(state, max(4, points // 2), SHARES),
        seconds,
        samples.synthetic,
    )
    found.write(folder)
    return found


def inspect(model: Any, *, unsafe: bool = False, precision: str = "fp32") -> Profile:
    """Costs of each op of a model, a file or a Keras model, and of the whole."""
    _, graph = _load(model, unsafe=unsafe)
    return profile(graph, precision)


def measure(
    files: Sequence[Path], *, device: str | Path = HOST, memory_mode: str | None = None, system_config: str | None = None, threads: int | None = None,
    runs: int = 200,
) -> tuple[Measurement, ...]:  # fmt: skip
    """Latency and memory of emitted files on a device (a name, or a .toml), interleaved; the first is the baseline. Threads: by default the device's.

    ``memory_mode``, ``system_config``: of an Ethos-U, in the place of those of its profile.
    """
    (chosen,) = configured([devices.load(device)], memory_mode=memory_mode, system_config=system_config)
    formats = {".tflite": "tflite", ".onnx": "onnx"}
    artifacts = []
    for file in map(Path, files):
        if not file.is_file():
            raise UsageError(f"{file}: no such file")
        if file.suffix not in formats:
            raise UsageError(f"{file} is neither a .tflite nor an .onnx file; emit one with lrfc build")
        if formats[file.suffix] not in chosen.formats:
            raise UsageError(f"device '{chosen.name}' runs {' and '.join(chosen.formats)} files, not {file}")
        artifacts.append(Artifact(file, formats[file.suffix], "fp32"))
    with runner(chosen) as there:
        return there.compare(artifacts, threads=threads or chosen.threads, runs=runs)


# -- the line ----------------------------------------------------------------------------------------------------------------------


def _several(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))


def _folders(model: Any, goals: Sequence[Destination], out: Path | None) -> list[Path]:
    """The output folder of each destination; UsageError, before any work, when one may not be replaced."""
    if out is None:
        out = Path(f"{_name(model)}-lrfc")
    folders = [out] if len(goals) == 1 else [out / goal.name for goal in goals]
    for folder in folders:
        artifact.check(folder.expanduser().absolute())
    return folders


def _name(model: Any) -> str:
    return Path(model).stem if isinstance(model, str | Path) else str(getattr(model, "name", "model"))


def _load(model: Any, *, unsafe: bool) -> tuple[Path, Graph]:
    if isinstance(model, str | Path):
        return Path(model), keras_io.from_keras(keras_load.load(model, unsafe=unsafe))
    graph = keras_io.from_keras(model)
    return Path(f"{model.name}.keras"), graph


def _refuse(graph: Graph, targets: Sequence[Any], config: BuildConfig) -> None:
    """Everything that stands in the way, before any work."""
    if config.qat:
        others = [f"{target.name} {target.precision}" for target in targets if (target.name, target.precision) != ("tflite", "int8")]
        if others:
            raise UsageError(f"--qat goes with --target tflite and --precision int8, not {' and '.join(others)}")
        annotate.check()
    reasons = [f"{target.name}: {reason}" for target in targets for reason in target.refusals(graph)]
    if reasons:
        raise ModelError(f"model '{graph.name}' cannot be emitted: {'; '.join(reasons)}")
    names = [op.name for op in graph]
    for option, patterns in (("--keep", config.keep), ("--only", config.only)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UsageError(f"{option} {pattern}: no layer has such a name; lrfc inspect lists the layers")
    layers = list(selected(graph, config.keep, config.only))
    if not layers:
        raise ModelError(f"model '{graph.name}' has no convolution and no fully connected layer, so there is nothing to factorize")
    if all(reason is not None for _, reason in layers):
        raise UsageError("--keep and --only leave no layer to factorize; lrfc inspect lists the layers")


def _tee(progress: Progress, log: list[str]) -> Progress:
    def write(line: str) -> None:
        log.append(line)
        progress.log(line)

    return Progress(progress.stage, write)


__all__ = ["LrfcError", "Result", "build", "explore", "inspect", "measure", "pipeline"]
