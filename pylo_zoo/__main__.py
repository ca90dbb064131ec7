"""``python -m pylo_zoo``: the same command line as ``pylo-zoo``."""

from __future__ import annotations

from pylo_zoo.cli import main

if __name__ == "__main__":
    main()
