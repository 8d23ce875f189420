"""What emits a model, what runs and measures the emitted file, and the device profiles.

Ships as ``lrfc.targets``.
"""

if __name__ == "targets":
    raise ImportError("import this package as lrfc.targets")
