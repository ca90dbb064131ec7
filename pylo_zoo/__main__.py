"""``python -m pylo_zoo`` runs the ``pylo-zoo`` command."""

from __future__ import annotations

from pylo_zoo.cli import main

if __name__ == "__main__":
    main()
