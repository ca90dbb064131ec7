"""Comparisons of optimizers on one task, with the same data, initial weights and steps.

``plan`` checks the settings, ``running`` trains in resumable runs,
``figures`` computes losses and steps to a target, and ``report`` writes the
results as JSON, Markdown, HTML and figures.
"""
