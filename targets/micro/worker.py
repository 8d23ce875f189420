"""The process that TensorFlow Lite Micro runs in: it aborts on files that it does not like.

A script that imports nothing of lrfc, so that it runs in any folder. It reads one line of JSON on
stdin and answers it with one on stdout:

  {"arena": path}              load a file
    -> {"head", "tail"}        bytes of its arena, by the runtime's own account
  {"run": path, "inputs", "outputs"}
                               run samples, (N, ...) for each input of the file in an .npz
    -> {"samples"}             their number; the outputs are in the other .npz

A failure is answered with {"error"}. It ends early when its stdin does. stderr has to be a file
that can be read: the runtime accounts and complains there.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path

# No package before main() has cleared the path.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Bytes of the arena that a file is given. Only what it uses takes memory.
ARENA = 256 << 20


def main() -> int:
    """Answer the request on stdin."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # the output of the runtime must not come before the answer
        request = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        try:
            answer = arena(**request) if "arena" in request else run(**request)
        except Exception as error:  # noqa: BLE001 - any error of the runtime is the answer
            answer = {"error": str(error) or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
    return 0


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


def arena(arena: str) -> dict[str, Any]:
    """The head and the tail of the arena of a file."""
    loaded, start = interpreter(Path(arena).read_bytes()), _position()
    loaded.print_allocations()
    found = dict(re.findall(r"Arena allocation (head|tail) (\d+) bytes", _said(start)))
    return {part: int(found[part]) for part in ("head", "tail")}


def run(run: str, inputs: str, outputs: str) -> dict[str, Any]:
    """The outputs of a file for each sample."""
    import numpy as np

    content = Path(run).read_bytes()
    loaded = interpreter(content)
    with np.load(inputs) as file:
        arrays = [file[name] for name in file.files]
    results = []
    count = len(model(content).subgraphs[0].outputs)
    for i in range(len(arrays[0])):
        for number, x in enumerate(arrays):
            loaded.set_input(x[i : i + 1], number)
        loaded.invoke()
        results.append([loaded.get_output(number).copy() for number in range(count)])
    np.savez(outputs, *map(np.concatenate, zip(*results, strict=True)))
    return {"samples": len(results)}


def interpreter(content: bytes) -> Any:
    """The runtime's interpreter of a file; RuntimeError with all operators that it lacks."""
    from tflite_micro.python.tflite_micro import runtime

    start = _position()
    try:
        return runtime.Interpreter.from_bytes(content, arena_size=ARENA)
    except struct.error as error:
        raise RuntimeError("the file is truncated or damaged") from error
    except RuntimeError as error:
        missing = lacking(content)
        if missing:
            raise RuntimeError(f"it has no operator {', '.join(missing)}") from error
        # The first line tells the cause, the next ones who passed it on.
        lines = [line for line in _said(start).splitlines() if line.strip()]
        raise RuntimeError(lines[0] if lines else str(error)) from error


def lacking(content: bytes) -> list[str]:
    """The operators of a file that the runtime lacks, by their names in the schema.

    The runtime looks all operators up before it prepares one, which may abort, and stops at the
    first that it lacks. So each kind is loaded by itself, in front of one that no file has.
    """
    from tflite_micro.python.tflite_micro import runtime
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    file = model(content)
    graph, codes = file.subgraphs[0], file.operatorCodes
    codes.append(schema.OperatorCodeT())
    codes[-1].builtinCode = codes[-1].deprecatedBuiltinCode = schema.BuiltinOperator.DELEGATE
    last = schema.OperatorT()
    last.opcodeIndex, last.inputs, last.outputs = len(codes) - 1, [], []
    kinds = {op.opcodeIndex: op for op in reversed(graph.operators)}  # the first of each
    missing = []
    for code in sorted(kinds):
        graph.operators = [kinds[code], last]
        start = _position()
        with suppress(RuntimeError):
            runtime.Interpreter.from_bytes(packed(file), arena_size=ARENA)
        if "'DELEGATE'" not in _said(start):
            missing.append(name(codes[code]))
    return missing


def name(code: Any) -> str:
    """The name of an operator in the schema, or that of a custom one."""
    from tflite_micro.python.tflite_micro import runtime
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    if code.customCode is not None:
        return bytes(code.customCode).decode()
    number = runtime.get_builtin_code_from_operator_code(code)
    kinds = vars(schema.BuiltinOperator).items()
    return str(next(kind for kind, value in kinds if value == number))


def model(content: bytes) -> Any:
    """The tables of a file as objects that can be changed."""
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))


def packed(file: Any) -> bytes:
    """The bytes of a file."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(file.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _position() -> int:
    """The end of what was written to stderr."""
    return os.lseek(2, 0, os.SEEK_CUR)


def _said(start: int) -> str:
    """The text on stderr behind this position."""
    return os.pread(2, _position() - start, start).decode(errors="replace")


if __name__ == "__main__":
    # The folder of this script may contain modules with the names of imported packages.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    sys.exit(main())
