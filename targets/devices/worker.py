"""The worker: a process that runs one model file and reports times and memory.

A script for any machine with Python 3.8, numpy and the runtime of the file. It reads one JSON
object a line from stdin and answers each with one on stdout:

  {"facts": folder}            describe this machine
    -> {"machine", "system", "python", "runtimes", "missing", "free_bytes"}
  {"path", "format", "threads", "cores", "sha256"}
                               pin the process, load the file and run it once
    -> {"runtime", "version", "load_ns", "first_ns", "baseline_rss", "rss", "cores"}
  {"runs", "inner"}            time ``runs`` times ``inner`` calls
    -> {"ns": [time of each run]}
  {"parts": runs, "scratch"}   time the parts of the file
    -> {"us": {name: median microseconds}}
  {"files": [path], "turns"}   time these files, in turns
    -> {"ns": [[time of one call, in each turn] for each file]}
  {"conditions": true}         read the sensors of the processor
    -> {"hz", "celsius"}
  {}                           end
    -> {"peak_rss"}

Memory is in bytes of resident set; null is a figure that the system does not report. A failure is
answered with {"error"}. When stdin ends, the other side is gone: the process ends at once, also in
the middle of a run. With a folder as its argument it writes its process number to a file there.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import queue
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

# No package before main() has cleared the path, and nothing that Python 3.8 does not have.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, TextIO

    from numpy.typing import NDArray

    Invoke = Callable[[], object]
    Starter = Callable[[str, int], Invoke]
    Parts = Callable[[str, int, int, str], dict[str, float]]

#: Nanoseconds of warm-up before each timing: another process used the caches, and the threads of
#: its runtime may still spin.
WARM_NS = 1_000_000
#: The shortest timing of a part, and the turns that it is timed in with the others.
PART_NS = 100_000
TURNS = 5
#: Runs that a profile does not count.
WARM_RUNS = 5
CPU = Path("/sys/devices/system/cpu")


def main() -> None:
    """Answer requests until stdin ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # the output of a runtime must not come between the answers
        serve(requests(), answers)


def requests() -> Iterator[dict[str, Any]]:
    """The requests on stdin. A thread reads them, so that their end is seen during a run."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def serve(requested: Iterable[dict[str, Any]], answers: TextIO) -> None:
    """Answer each request."""
    server = Server()
    for request in requested:
        try:
            answer = server.answer(request)
        except Exception as error:  # noqa: BLE001 - any error of a runtime is the answer
            lines = str(error).strip().splitlines() or [type(error).__name__]
            answer = {"error": lines[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Server:
    """The state between requests: the file that is loaded."""

    def __init__(self) -> None:
        self.infer: Invoke | None = None
        #: The request that loaded the file.
        self.file: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out a request and return its answer."""
        if "facts" in request:
            return facts(request["facts"])
        if "path" in request:
            self.file = request
            self.infer, answer = load(**request)
            return answer
        if "runs" in request and self.infer is not None:
            return {"ns": timed(self.infer, request["runs"], request["inner"])}
        if "parts" in request:
            parts = RUNTIMES[self.file["format"]]()[1]
            path, threads = self.file["path"], self.file["threads"]
            return {"us": parts(path, threads, request["parts"], request["scratch"])}
        if "files" in request:
            start = RUNTIMES[self.file["format"]]()[0]
            calls = [start(path, self.file["threads"]) for path in request["files"]]
            return {"ns": by_turns(calls, request["turns"])}
        if "conditions" in request:
            return conditions()
        return {"peak_rss": memory("VmHWM")}


def facts(folder: str) -> dict[str, Any]:
    """This machine, the runtimes that it has, and the reasons why it lacks the others."""
    runtimes, missing = {}, {}
    for form, runtime in RUNTIMES.items():
        try:
            _, _, name, version = runtime()
            runtimes[form] = f"{name} {version}"
        except Exception as error:  # noqa: BLE001 - a broken runtime is missing, too
            missing[form] = str(error)
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "runtimes": runtimes,
        "missing": missing,
        "free_bytes": shutil.disk_usage(folder).free,
    }


def load(
    path: str,
    format: str,  # noqa: A002
    threads: int,
    cores: list[int] | None,
    sha256: str,
) -> tuple[Invoke, dict[str, Any]]:
    """A function that runs the file once, on random inputs, and the answer about its loading."""
    if not sha256 or hashlib.sha256(Path(path).read_bytes()).hexdigest() != sha256:
        raise RuntimeError("the file that arrived there is not the one that was sent")
    pinned = pin(threads, cores)  # before the runtime starts its threads, which inherit it
    start, _, name, version = RUNTIMES[format]()
    forget_peak()
    baseline = memory("VmRSS")
    began = time.perf_counter_ns()
    infer = start(path, threads)
    loaded = time.perf_counter_ns()
    infer()
    first = time.perf_counter_ns()
    figures = {
        "load_ns": loaded - began,
        "first_ns": first - loaded,
        "baseline_rss": baseline,
        "rss": memory("VmRSS"),
        "cores": pinned,
    }
    return infer, {"runtime": name, "version": version, **figures}


def timed(infer: Invoke, runs: int, inner: int) -> list[int]:
    """Nanoseconds of each of ``runs`` times ``inner`` calls, after a warm-up."""
    clock = time.perf_counter_ns
    began = clock()
    while clock() - began < WARM_NS:
        infer()
    times = []
    for _ in range(runs):
        began = clock()
        for _ in range(inner):
            infer()
        times.append(clock() - began)
    return times


def in_turns(calls: Mapping[str, Invoke], runs: int) -> dict[str, float]:
    """Median microseconds of each call over ``runs`` timings.

    They are made in turns, so that a disturbance affects all calls.
    """
    inner = {name: -(-PART_NS // max(1, min(timed(call, 3, 1)))) for name, call in calls.items()}
    times: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            times[name] += timed(call, -(-runs // TURNS), inner[name])
    return {name: statistics.median(values) / inner[name] / 1e3 for name, values in times.items()}


def by_turns(calls: list[Invoke], turns: int) -> list[list[float]]:
    """Nanoseconds of each call in each turn: the minimum of three timings, the least disturbed."""
    inner = [max(1, PART_NS // max(1, min(timed(call, 3, 1)))) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(turns):
        for number, call in enumerate(calls):
            times[number].append(min(timed(call, 3, inner[number])) / inner[number])
    return times


# -- runtimes --------------------------------------------------------------------------------------


def litert() -> tuple[Starter, Parts, str, str]:
    """The runtime of .tflite files: LiteRT, or the tflite-runtime of older devices.

    Returns a function that starts a file, one that times each signature, its name and version.
    """
    errors = []
    for module in ("ai_edge_litert", "tflite_runtime"):
        try:
            package, Interpreter = (  # noqa: N806
                importlib.import_module(module),
                importlib.import_module(f"{module}.interpreter").Interpreter,
            )
            version = str(getattr(package, "__version__", "of unknown version"))
            break
        except ImportError as error:
            errors.append(error)
    else:
        raise RuntimeError(
            f"the runtime of .tflite files is not installed there ({errors[0]}): pip install"
            " ai-edge-litert"
        ) from errors[0]

    def start(path: str, threads: int) -> Invoke:
        interpreter = Interpreter(model_path=path, num_threads=threads)
        interpreter.allocate_tensors()
        for entry in interpreter.get_input_details():
            interpreter.set_tensor(entry["index"], random(entry["shape"], entry["dtype"]))
        run: Invoke = interpreter.invoke
        return run

    def parts(path: str, threads: int, runs: int, scratch: str) -> dict[str, float]:
        interpreter = Interpreter(model_path=path, num_threads=threads)
        return in_turns(
            {key: signature(interpreter, key) for key in interpreter.get_signature_list()}, runs
        )

    name = {"ai_edge_litert": "LiteRT", "tflite_runtime": "tflite-runtime"}[module]
    return start, parts, name, version


def signature(interpreter: Any, key: str) -> Invoke:
    """A function that runs one signature, on random inputs."""
    runner = interpreter.get_signature_runner(key)
    inputs = {
        name: random(entry["shape"], entry["dtype"])
        for name, entry in runner.get_input_details().items()
    }
    runner(**inputs)  # allocates
    wrapper = getattr(runner, "_interpreter_wrapper", None)
    subgraph = getattr(runner, "_subgraph_index", None)
    if wrapper is None or subgraph is None:
        # Another version of the runtime: the timing includes copies of inputs and outputs.
        return lambda: runner(**inputs)
    return lambda: wrapper.Invoke(subgraph)


def onnxruntime() -> tuple[Starter, Parts, str, str]:
    """The runtime of .onnx files, onnxruntime.

    Returns a function that starts a file, one that times each node, its name and version.
    """
    try:
        import onnxruntime as package
    except ImportError as error:
        raise RuntimeError(
            f"the runtime of .onnx files is not installed there ({error}): pip install onnxruntime"
        ) from error

    def session(path: str, threads: int, profile: str | None = None) -> tuple[Any, Invoke]:
        options = package.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        opened = package.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        dtypes = {"float": "float32", "double": "float64"}
        feed = {
            entry.name: random(entry.shape, dtypes.get(entry.type[7:-1], entry.type[7:-1]))
            for entry in opened.get_inputs()
        }
        return opened, lambda: opened.run(None, feed)

    def parts(path: str, threads: int, runs: int, scratch: str) -> dict[str, float]:
        folder = tempfile.mkdtemp(dir=scratch)
        try:
            opened, infer = session(path, threads, str(Path(folder) / "profile"))
            for _ in range(WARM_RUNS + runs):
                infer()
            events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return kernels(events)

    def start(path: str, threads: int) -> Invoke:
        return session(path, threads)[1]

    return start, parts, "onnxruntime", package.__version__


def kernels(events: list[dict[str, Any]]) -> dict[str, float]:
    """Median microseconds of each node, by name, from onnxruntime's profile, without the warm-up.

    onnxruntime counts in whole microseconds.
    """
    times: dict[str, list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"][: -len("_kernel_time")], []).append(event["dur"])
    return {
        name: float(statistics.median(durations[WARM_RUNS:])) for name, durations in times.items()
    }


#: Format → function that returns a function that starts a file, one that times its parts, and the
#: name and version of the runtime.
RUNTIMES: dict[str, Callable[[], tuple[Starter, Parts, str, str]]] = {
    "tflite": litert,
    "onnx": onnxruntime,
}


def random(shape: Any, dtype: Any) -> NDArray[Any]:
    """Values from 0 to 1; zeros for integers, since they may be indices."""
    import numpy as np

    kind = np.dtype(dtype)
    values = (
        np.random.default_rng(0).random(tuple(shape))
        if kind.kind == "f"
        else np.zeros(tuple(shape))
    )
    return values.astype(kind)


# -- the machine -----------------------------------------------------------------------------------


def pin(threads: int, cores: list[int] | None) -> list[int] | None:
    """Bind this thread, and those that it starts, to ``cores``; return them.

    By default to as many as ``threads``: the fastest cores, and of these the least busy ones. None
    where the system cannot do that.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        return None
    if cores is None:
        busy = ticks()
        time.sleep(0.05 if threads < len(allowed) else 0.0)
        load = {core: count - busy.get(core, 0) for core, count in ticks().items()}
        cores = sorted(
            allowed,
            key=lambda core: (
                -(number(CPU / f"cpu{core}/cpufreq/cpuinfo_max_freq") or 0),
                load.get(core, 0),
                -core,
            ),
        )[:threads]
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return None
    return sorted(cores)


def ticks() -> dict[int, int]:
    """The busy time of each core since the system's start, in clock ticks (proc(5)).

    Empty where the system does not report it.
    """
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()]
    return {int(row[0][3:]): sum(map(int, row[1:9])) - int(row[4]) - int(row[5]) for row in rows}


def conditions() -> dict[str, Any]:
    """The mean clock of the cores that this process may use, and the highest temperature.

    None where the system does not report it.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    clocks = [
        khz
        for khz in (number(CPU / f"cpu{core}/cpufreq/scaling_cur_freq") for core in cores)
        if khz
    ]
    heat = [
        value
        for value in map(number, sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp")))
        if value is not None
    ]
    return {
        "hz": statistics.mean(clocks) * 1e3 if clocks else None,
        "celsius": max(heat) / 1e3 if heat else None,
    }


def number(path: Path) -> int | None:
    """The number in a file of the system; None without one."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def memory(field: str) -> int | None:
    """Resident set of this process in bytes: 'VmRSS' now, 'VmHWM' at its peak.

    Read from Linux; getrusage would give the peak of the parent before exec.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None
    )


def forget_peak() -> None:
    """Reset the peak memory, where Linux allows it, after the import of the runtime."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


if __name__ == "__main__":
    # The folder of this script may contain modules with the names of imported packages.
    sys.path[:] = [
        entry
        for entry in sys.path
        if Path(entry or ".").resolve() != Path(__file__).resolve().parent
    ]
    for folder in sys.argv[1:]:
        Path(folder, f"{os.getpid()}.pid").write_text(str(os.getpid()))
    main()
