"""The passes of the compiler, one per file. The folder ships as ``lrfc.passes``."""

if __name__ != "lrfc.passes":
    raise ImportError("the folder passes/ is the package lrfc.passes: write 'import lrfc.passes'")
