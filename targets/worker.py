"""Runs one model file in a process of its own and tells how long that takes. A script for any machine with Python, numpy and the file's runtime.

It reads one JSON object a line from stdin and answers each with one on stdout:
  {"path", "format", "threads"}  load the file and run it once  -> {"runtime", "version", "load_ns", "first_ns", "baseline_rss", "rss"}
  {"runs", "inner"}              time runs of ``inner`` calls   -> {"ns": [time of each run]}
  {}                             the end                        -> {"peak_rss"}
Memory is in bytes of resident set; null where the system does not tell it. A failure is answered with {"error"}; the end of stdin ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Untimed work before each timing: another process had the caches, and the threads of its runtime may still spin.
WARM_NS = 1_000_000


def main() -> None:
    """Answer until stdin ends."""
    infer: Callable[[], object] | None = None
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a runtime prints must not come between the answers
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if "path" in request:
                    infer, answer = load(request["path"], request["format"], request["threads"])
                elif "runs" in request and infer is not None:
                    answer = {"ns": timed(infer, request["runs"], request["inner"])}
                else:
                    answer = {"peak_rss": memory("VmHWM")}
            except Exception as error:  # noqa: BLE001 - whatever a runtime raises is the answer
                answer = {"error": str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def load(path: str, form: str, threads: int) -> tuple[Callable[[], object], dict[str, Any]]:
    """A function that runs the file once, on random inputs, and what its loading took."""
    start, name, version = {"tflite": litert, "onnx": onnxruntime}[form]()
    forget_peak()
    baseline = memory("VmRSS")
    began = time.perf_counter_ns()
    infer = start(path, threads)
    loaded = time.perf_counter_ns()
    infer()
    first = time.perf_counter_ns()
    figures = {"load_ns": loaded - began, "first_ns": first - loaded, "baseline_rss": baseline, "rss": memory("VmRSS")}
    return infer, {"runtime": name, "version": version, **figures}


def timed(infer: Callable[[], object], runs: int, inner: int) -> list[int]:
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


Starter = Callable[[str, int], Callable[[], object]]


def litert() -> tuple[Starter, str, str]:
    """LiteRT: how to start it, its name and version."""
    try:
        import ai_edge_litert as package
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise RuntimeError(f"the runtime of .tflite files is not installed there ({error}): pip install ai-edge-litert") from error

    def start(path: str, threads: int) -> Callable[[], object]:
        interpreter = Interpreter(model_path=path, num_threads=threads)
        interpreter.allocate_tensors()
        for entry in interpreter.get_input_details():
            interpreter.set_tensor(entry["index"], random(entry["shape"], entry["dtype"]))
        run: Callable[[], object] = interpreter.invoke
        return run

    return start, "LiteRT", package.__version__


def onnxruntime() -> tuple[Starter, str, str]:
    """onnxruntime: how to start it, its name and version."""
    try:
        import onnxruntime as package
    except ImportError as error:
        raise RuntimeError(f"the runtime of .onnx files is not installed there ({error}): pip install onnxruntime") from error

    def start(path: str, threads: int) -> Callable[[], object]:
        options = package.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = package.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        dtypes = {"float": "float32", "double": "float64"}
        feed = {entry.name: random(entry.shape, dtypes.get(kind := entry.type[7:-1], kind)) for entry in session.get_inputs()}
        return lambda: session.run(None, feed)

    return start, "onnxruntime", package.__version__


def random(shape: Any, dtype: Any) -> NDArray[Any]:
    """Values from 0 to 1; zeros for integers, since they may be indices."""
    kind = np.dtype(dtype)
    values = np.random.default_rng(0).random(tuple(shape)) if kind.kind == "f" else np.zeros(tuple(shape))
    return values.astype(kind)


def memory(field: str) -> int | None:
    """Resident set of this process in bytes: 'VmRSS' now, 'VmHWM' at its peak. Read from Linux; getrusage would give the peak of the parent before exec."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def forget_peak() -> None:
    """Let the peak start anew, where Linux allows it: importing the runtime is no part of the model."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


if __name__ == "__main__":
    main()
