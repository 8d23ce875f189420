"""What each option of a build means: the one text behind the command line's help, lrfc.toml and its schema."""

from __future__ import annotations

from typing import NamedTuple


class Option(NamedTuple):
    """The help of an option, and a value to show where its default is none."""

    help: str
    example: str | int | bool | list[str] | None = None


#: By name on the command line and in lrfc.toml, with _ in the place of -.
OPTIONS: dict[str, Option] = {
    "target": Option("tflite or onnx; may be given several times. By default what the device runs.", ["tflite"]),
    "device": Option(
        "Where the file is to run: a name of lrfc devices list, or a .toml; may be given several times. By default this machine.", ["host"]
    ),
    "memory_mode": Option("Memory mode of every Ethos-U among the devices, by its name in the vela.ini; by default that of the device.", "Sram_Only"),
    "system_config": Option(
        "System configuration of every Ethos-U among the devices, by its name in the vela.ini; by default that of the device.",
        "Ethos_U55_Deep_Embedded",
    ),
    "precision": Option("fp32, fp16, dynamic, int8 or int16x8; by default what the device computes in.", "int8"),
    "int8_io": Option("An int8 file takes and gives int8 values; their scales are in the manifest."),
    "qat": Option("Train the int8 network with its rounding simulated, after the fine-tune."),
    "data": Option("digits, a .npz (x, y), a folder of class folders, or package.module:function.", "digits"),
    "test_data": Option("Held-out data for the reported accuracies, in the same forms.", "test.npz"),
    "max_macs": Option("MACs to keep: 50%, or an amount in k, M or G: 20M.", "50%"),
    "max_params": Option("Parameters to keep: 50%, or an amount in k or M: 100k.", "50%"),
    "max_size": Option("Bytes of the emitted file to keep: 40%, or an amount in B, kB, MB, KiB or MiB: 200KiB.", "40%"),
    "max_ram": Option("Planned activation memory to keep: 60%, or an amount in B, kB, MB, KiB or MiB: 64KiB.", "64KiB"),
    "max_latency": Option("Latency on the device to keep: 60%, or an amount in us, ms or s: 12ms.", "60%"),
    "max_drop": Option(
        "Accuracy that the emitted file may lose, in percentage points: 1pp, or 1pp@95% to be sure of it. Without any budget the build goes as far as 1pp allows.",
        "1pp",
    ),
    "objective": Option("What to make small as far as --max-drop allows: latency (without any budget), cycles, macs, size or ram.", "latency"),
    "metric": Option(
        "What is reported and held against --max-drop: accuracy, miou, auc, mse, fidelity, or module:function (:min if less is better).", "accuracy"
    ),
    "methods": Option("Factorizations to choose from, comma-separated; all by default."),
    "keep": Option("Layers to leave alone: a name or a glob; may be given several times.", ["head*"]),
    "only": Option("The only layers to factorize: a name or a glob; may be given several times.", ["conv*"]),
    "rank_multiple": Option("Ranks step in multiples of this, what the device computes at once.", 8),
    "prune": Option("Filters are cut besides (on) or in the place of (only) factorization, chosen together with the ranks; off by default.", "on"),
    "epochs": Option("Epochs of the one fine-tune; 0 for none."),
    "time_budget": Option("Time that the fine-tune may take: 10m. It ends there, or with the epochs.", "10m"),
    "augment": Option("Flip and shift images in the fine-tune; by default for classifiers of natural images.", True),
    "seed": Option("Seed of splits, samples and fine-tuning."),
    "threads": Option("Threads that the measured runtime may use; by default those of the device.", 1),
    "out": Option("Output folder; MODEL-lrfc by default.", "model-lrfc"),
    "unsafe_load": Option("Load Lambda code that the file contains. Only for files that you trust."),
    "resume": Option("Take over what an earlier run, also a killed one, found out about the same model and data."),
    "print_after": Option("Print the graph after this pass; may be given several times.", ["Factorize"]),
    "stop_after": Option("Stop after this pass and emit nothing.", "Factorize"),
}

#: Names that stand for the fields of BuildConfig of another name.
FIELDS = {"target": "targets", "device": "devices"}


def text(name: str) -> str:
    """The help of an option."""
    return OPTIONS[name].help
