"""The cases of the harness, in the order in which they run: those that share a world are neighbours.

May import bench. Never: a figure.
"""

from __future__ import annotations

from bench.case import Case
from bench.cases import callbacks, e2e, enrich, growth, ingest, latency, live, recover, sink, soak, stages, timers

CASES: tuple[Case, ...] = (
    enrich.CASE,
    ingest.CASE,
    callbacks.CASE,
    *stages.CASES,
    sink.CASE,
    recover.CASE,
    timers.CASE,
    growth.CASE,
    live.CASE,
    e2e.CASE,
    latency.CASE,
    soak.CASE,
)
