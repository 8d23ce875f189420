"""``python -m lrfc``: the command line."""

from __future__ import annotations

from lrfc.cli import main

if __name__ == "__main__":
    main()
