"""A comparison's measurement of a step's memory."""

from __future__ import annotations

import pytest

from pylo_zoo.experiments import peak_memory
from pylo_zoo.experiments.compare import memory


@pytest.mark.skipif(peak_memory.method("cpu") == "none", reason="the kernel has no high-water mark to reset")
def test_the_peak_of_a_step_is_measured() -> None:
    result = memory.measured("quadratic", {"size": 1024}, "muon", "cpu")
    assert result.bytes is not None
    assert 4 * 1024**2 < result.bytes < 400 * 1024**2
    assert "VmHWM" in result.method


def test_a_failed_measurement_is_none() -> None:
    assert memory.measured("quadratic", {}, "adamw", "mps") == memory.Peak(None, memory.METHODS["none"])
    assert memory.measured("quadratic", {}, "nothing", "cpu").bytes is None
    assert peak_memory.method("cuda:0") == "cuda"


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_axes_of_steps_have_whole_numbers(steps: int) -> None:
    from matplotlib.figure import Figure

    from pylo_zoo.experiments.compare import plots

    axes = Figure().subplots()
    axes.plot(range(1, steps + 1), range(steps))
    axes.set_xlim(0, steps)
    plots._finish(axes, "title", "about", plots.STEP)
    assert all(tick == round(tick) for tick in axes.get_xticks())
