"""``python -m lrfc``: the command line."""

from __future__ import annotations

from lrfc.cli.app import main

if __name__ == "__main__":
    main()
