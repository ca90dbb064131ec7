"""Block sizes of the kernels, in one table: ``benchmarks/kernel_variants.py`` explores others and prints a new line.

Fields are powers of two. They change speed, the order of sums and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Block sizes, and warps per program."""

    sums_rows: int = 64
    """Factor pass: rows per program. A program reads ``sums_warps`` of them at a time."""
    sums_blocks: int = 4
    """Factor pass: neighboring elements per row and program, in units of 128."""
    sums_warps: int = 4
    moment_lanes: int = 128
    """Moment pass: elements per tile, in units of 4 neighbors."""
    moment_warps: int = 4
    moment_stages: int = 1
    """Moment pass: tiles whose loads are in flight; with 1, the compiler orders loads."""
    moment_tiles: int = 8
    """Moment pass: tiles per program, if a parameter is long enough."""
    move_sizes: tuple[int, int, int, int] = (128, 4, 1, 4)
    """Move pass, networks of up to 8 units: lanes and neighbors per lane of a tile, tiles per program, and warps."""
    network_sizes: tuple[int, int, int, int] = (128, 2, 1, 4)
    """Move pass, wider networks: the same."""
    network: str = "products"
    """Move pass, wider networks: ``"products"`` of matrices, or multiply-adds in ``"registers"``."""


TUNING = Tuning()
