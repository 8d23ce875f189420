"""Targets, which emit and run files, and devices, on which files are measured.

Ships as ``lrfc.targets``.
"""

if __name__ == "targets":
    raise ImportError("import this package as lrfc.targets")
