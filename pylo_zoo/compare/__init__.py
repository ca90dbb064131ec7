"""Optimizers side by side on one task: the same data, weights and steps for all, and what came of it.

:mod:`~pylo_zoo.compare.plan` says what is compared, :mod:`~pylo_zoo.compare.running` trains, in runs that go on after
an interruption, :mod:`~pylo_zoo.compare.figures` works out figures of merit, and :mod:`~pylo_zoo.compare.report` writes
them down, as JSON, Markdown, a page and figures.
"""
