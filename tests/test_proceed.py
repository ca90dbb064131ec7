"""``proceed`` of the CPU kernels. gpu_boundaries.py has the same checks for a GPU's kernels."""

from __future__ import annotations

import pytest
import torch
from gpu_checks import FEW, RULES, make_layers, make_tasks
from proceed_cases import Made, check_proceed, check_refused

from pylo_zoo.kernels import Kernels, kernels_for


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    found = kernels_for("auto", torch.device("cpu"))
    if found is None:
        pytest.skip("no compiler")
    return found


def make(name: str) -> Made:
    rule, units, hidden = RULES[name]
    return make_tasks(FEW, "torch"), rule, make_layers(rule, units, hidden)


@pytest.mark.parametrize("name", ["velo", "celo2-relu", "adafac-32"])
def test_zero_writes_nothing_and_one_is_the_default(kernels: Kernels, name: str) -> None:
    check_proceed(kernels, lambda: make(name), "cpu")


def test_a_wrong_tensor_is_refused(kernels: Kernels) -> None:
    check_refused(kernels, lambda: make("velo"), "cpu")
