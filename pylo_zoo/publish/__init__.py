"""Publishes an artifact on the Hub: prepares the files (:mod:`~pylo_zoo.publish.plan`) and the card, and commits them.

``pylo-zoo publish DIR --repo-id ORG/NAME`` calls :func:`publish`.
"""

from __future__ import annotations

from pylo_zoo.publish.plan import PublishPlan, prepare
from pylo_zoo.publish.push import publish
from pylo_zoo.publish.records import Options, Published

__all__ = ["Options", "PublishPlan", "Published", "prepare", "publish"]
