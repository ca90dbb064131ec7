"""The model card's plot of a report is deterministic."""

from __future__ import annotations

import builtins
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from parity_reports import errors, failing, hostile, not_run, passing

from pylo_zoo.errors import ZooError
from pylo_zoo.publish import plot
from pylo_zoo.report.records import Quantity, Report

pytest.importorskip("matplotlib")


def size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[12:16] == b"IHDR"
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize("make", [passing, failing, hostile])
def test_the_plot_is_an_image_without_a_date(make: Callable[[], Report]) -> None:
    png = plot.parity_png(make())
    width, height = size(png)
    assert width == plot.WIDTH * plot.DPI
    assert width / 2 < height < 2 * width
    assert len(png) < 400_000
    assert not any(word in png for word in (b"tEXt", b"tIME", b"iTXt", b"zTXt"))


def test_the_bytes_do_not_depend_on_the_users_settings() -> None:
    import matplotlib

    first = plot.parity_png(passing())
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "text.color": "red"}):
        assert plot.parity_png(passing()) == first
        assert matplotlib.rcParams["font.size"] == 30


def test_other_reports_give_other_plots() -> None:
    report = passing()
    worse = replace(report, checks=[replace(each, errors=errors(1e-13)) for each in report.checks])
    assert len({plot.parity_png(each) for each in (report, worse, failing())}) == 3


def test_excess_rows_are_dropped_except_those_nearest_to_their_bounds() -> None:
    many = [Quantity(f"q{k}", "float64", 1e-15, 1e-12, "ordinary", "torch", "", 0) for k in range(1000)]
    many[777] = replace(many[777], name="written/guilty", error=1e-11)
    _, height = size(plot.parity_png(replace(passing(), quantities=many)))
    assert height < 3000
    rows = plot._quantity_rows(replace(passing(), quantities=many))
    assert len(rows) == plot.MAX_ROWS
    assert "written" in [row.name for row in rows]


def test_a_group_is_represented_by_its_worst_error() -> None:
    result = [
        Quantity(f"features/{name}", "float64", error, 1e-12, "ordinary", "torch", "", 0)
        for name, error in (("a", 1e-15), ("b", 5e-13), ("c", 0.0))
    ]
    (row,) = plot._quantity_rows(replace(passing(), quantities=result))
    assert row.name == "features (3)"
    assert [point.error for point in row.points] == [5e-13]


def test_a_report_without_comparisons_has_no_plot() -> None:
    with pytest.raises(ZooError, match="no comparisons to draw"):
        plot.parity_png(not_run())


def test_without_matplotlib_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return genuine(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ZooError) as caught:
        plot.parity_png(passing())
    assert caught.value.hint == "Run pip install 'pylo-zoo[publish]'."
