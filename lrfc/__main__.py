"""``python -m lrfc``: the command line."""

from __future__ import annotations

import sys

from lrfc.cli import main

sys.exit(main())
