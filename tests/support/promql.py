"""What a PromQL expression names, held against what our processes export. No parser: promtool is one, where it is to be had.

May import runtime.metrics. Never: which expressions there are.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from runtime import metrics

ROOT = Path(__file__).resolve().parents[2]
CODE = (
    "runtime",
    "vendors",
    "producers",
    "processors",
    "senders",
    "sinks",
    "tracking",
    "replay",
    "api",
    "local",
    "console",
)
OF_PROMETHEUS = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate", "severity"}}
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
_NAME = re.compile(r"\b(heliograph_\w+|up|ALERTS)\b(?![\"'])")
_STRING = re.compile(r'"[^"]*"')


@cache
def exported() -> dict[str, tuple[str, set[str]]]:
    """Name of a series → name of its declaration, its labels."""
    found: dict[str, tuple[str, set[str]]] = {name: ("", labels) for name, labels in OF_PROMETHEUS.items()}
    for declared, metric in vars(metrics).items():
        if isinstance(metric, MetricWrapperBase):
            labels = set(metric._labelnames)
            for suffix in _SUFFIXES.get(str(metric._type), ("",)):
                found[metric._name + suffix] = (declared, labels | ({"le"} if suffix == "_bucket" else set()))
    return found


def metrics_of(expression: str) -> list[str]:
    """The series that an expression selects."""
    return _NAME.findall(_STRING.sub('""', expression))


def unknown_metrics(expression: str) -> list[str]:
    """Series that nobody exports."""
    return [name for name in metrics_of(expression) if name not in exported()]


def unset_metrics(expression: str) -> list[str]:
    """Series that are declared, and that no code touches."""
    code = "\n".join(path.read_text("utf-8") for folder in CODE for path in (ROOT / folder).rglob("*.py"))
    code = re.sub(r"^\w+ = (Counter|Gauge|Histogram)\(", "", code, flags=re.MULTILINE)
    declared = {exported()[name][0] for name in metrics_of(expression) if name in exported()} - {""}
    return sorted(name for name in declared if not re.search(rf"\b{name}\b", code))


def labels_of(expression: str) -> set[str]:
    """Labels that an expression groups by or selects with."""
    grouped = re.findall(r"\b(?:by|without|on|ignoring) \(([^)]*)\)", expression)
    selected = re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", expression)
    made = set(re.findall(r'label_(?:join|replace)\(.*?, "(\w+)"', expression))
    return {label.strip() for group in grouped for label in group.split(",") if label.strip()} | set(selected) - made


def unknown_labels(expression: str) -> list[str]:
    """Labels that none of the expression's series has."""
    known = set().union(
        *(exported()[name][1] for name in metrics_of(expression) if name in exported()), {"job", "instance"}
    )
    return sorted(labels_of(expression) - known)


def matched_values(expression: str) -> list[tuple[str, str]]:
    """(label, value) of every selector; a regular expression's alternatives one by one."""
    found = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', expression)
    return [(label, value) for label, values in found for value in values.split("|")]
