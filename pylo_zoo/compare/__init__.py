"""Comparisons of optimizers on one task, with the same data, initial weights and steps.

:mod:`~pylo_zoo.compare.plan` checks the settings, :mod:`~pylo_zoo.compare.running` trains in resumable runs,
:mod:`~pylo_zoo.compare.figures` computes losses and steps to a target, and :mod:`~pylo_zoo.compare.report` writes the
results as JSON, Markdown, HTML and figures.
"""
