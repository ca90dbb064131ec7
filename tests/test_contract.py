"""The contract table: every cell has a test or a reason, and the page shows the current table."""

from __future__ import annotations

import importlib
import sys

import contract_docs
import pytest
from contract_table import HELD, PROPERTIES, TABLE


@pytest.fixture(scope="module", autouse=True)
def tests_imported() -> None:
    for module in contract_docs.MODULES:
        importlib.import_module(module)


def test_every_cell_has_a_test_or_a_reason() -> None:
    for key, row in PROPERTIES.items():
        tested = [name for name in TABLE if row.reason(name) is None]
        assert bool(HELD.get(key)) == bool(tested), key
        assert set(row.left_out) <= {*TABLE, "*"}, key


def test_every_test_of_a_cell_runs_over_its_optimizers() -> None:
    for key, tests in HELD.items():
        for where in tests:
            module, name = where.split("::")
            marks = getattr(sys.modules[module], name).pytestmark
            (entries,) = (mark.kwargs["ids"] for mark in marks if mark.args and mark.args[0] == "entry")
            assert entries == [each for each in TABLE if PROPERTIES[key].reason(each) is None]
            assert not [mark for mark in marks if mark.name in ("skip", "skipif", "xfail", "slow")], where


def test_the_page_shows_the_table() -> None:
    page = contract_docs.PAGE.read_text(encoding="utf-8")
    assert page == contract_docs.update_page(page), "Run: python tests/contract_docs.py"
