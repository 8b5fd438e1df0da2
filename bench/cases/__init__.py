"""The cases of the harness, in the order in which they run: those that share a world are neighbours.

May import bench. Never: a figure.
"""

from __future__ import annotations

from bench.case import Case
from bench.cases import e2e, enrich, stages

CASES: tuple[Case, ...] = (enrich.CASE, *stages.CASES, e2e.CASE)
