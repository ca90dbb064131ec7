"""The parity report: its records, strict reading, and how it is shown (terminal, Markdown, HTML, JUnit)."""

from __future__ import annotations

from pylo_zoo.report.records import Report

__all__ = ["Report"]
