"""``pytest --margins`` reports each test's largest error over its bound; a margin over one half fails the run.

Works under pytest-xdist: a worker sends a test's largest margin with the test's report.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import margins
import pytest

PROPERTY = "margin"
_found = pytest.StashKey[dict[str, tuple[float, str]]]()
SHOWN = 40
"""Lines of the report; margins over the limit are always shown."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--margins", action="store_true", help="report errors over their bounds; fail if one is over 0.5")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_found] = {}
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Collector(config), "margins collector")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    taken = margins.take()
    if taken:
        item.user_properties.append((PROPERTY, list(max(taken))))
    return (yield)


class _Collector:
    """Collects margins in the reporting process."""

    def __init__(self, config: pytest.Config) -> None:
        self.found = config.stash[_found]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == PROPERTY and isinstance(value, (list, tuple)):
                self.found[report.nodeid] = max((value[0], value[1]), self.found.get(report.nodeid, (0.0, "")))


def over(config: pytest.Config) -> list[str]:
    """Tests whose margin is over the limit."""
    return [test for test, (ratio, _) in config.stash[_found].items() if ratio > margins.LIMIT]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if config.getoption("--margins") and not hasattr(config, "workerinput") and over(config):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--margins"):
        return
    rows = sorted(((ratio, test, what) for test, (ratio, what) in config.stash[_found].items()), reverse=True)
    terminalreporter.section("margins: largest error over its bound, by test")
    for ratio, test, what in rows[: max(SHOWN, len(over(config)))]:
        flag = "  OVER" if ratio > margins.LIMIT else ""
        terminalreporter.write_line(f"{ratio:8.3f}{flag}  {test}  {what}".rstrip())
    if len(rows) > SHOWN:
        terminalreporter.write_line(f"{len(rows):,} tests have margins; the largest are shown.")
    if over(config):
        terminalreporter.write_line(f"{len(over(config))} over {margins.LIMIT}: another processor may pass the bound.")
