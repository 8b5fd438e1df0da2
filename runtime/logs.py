"""Logs: one JSON object a line on stderr, with correlation ids and without personal data.

May import structlog and schemas.channels. Never: addresses, bodies, tokens, keys; the redaction below is the last defence,
not a licence.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from schemas.channels import CONTACT_FIELDS, PARTS

_PRIVATE_KEYS = frozenset(
    {
        *CONTACT_FIELDS,
        *PARTS,
        "address",
        "to",
        "recipient",
        "token",
        "tokens",
        "device_token",
        "content",
        "password",
        "secret",
        "api_key",
        "authorization",
        "auth_token",
        "dsn",
        "name",
        "value",
        "key",
        "raw",
        "variables",
        "metadata",
        "headers",
    }
)
_PATTERNS = (
    (re.compile(r"[^\s<>\"'@]+@[^\s<>\"'@]+"), "[email]"),
    (re.compile(r"\+\d{7,15}\b"), "[phone]"),
    (re.compile(r"\bhg_[A-Za-z0-9_-]{8,}"), "[api key]"),
    (re.compile(r"(?i)\b(bearer|basic) [A-Za-z0-9._~+/=-]+"), r"\1 [secret]"),
    (re.compile(r"://[^/\s:@]+:[^/\s@]+@"), "://[secret]@"),
    # A webhook's URL is a secret: Slack's in its path, a workflow's and many others in their query.
    (re.compile(r"(hooks\.slack\.com/)[^\s\"']+"), r"\1[secret]"),
    (re.compile(r"(?i)([?&](?:sig|signature|token|key|secret)=)[^&\s\"']+"), r"\1[secret]"),
)
_REDACTED = "[redacted]"


def redact_text(text: str) -> str:
    """The text without e-mail addresses, phone numbers, API keys and credentials."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _redact(value: Any) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {k: _REDACTED if k in _PRIVATE_KEYS else _redact(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item) for item in value]
    if isinstance(value, bytes):
        return _REDACTED
    return value


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: private keys are blanked, everything else is searched for private patterns."""
    for key, value in event.items():
        event[key] = _REDACTED if key in _PRIVATE_KEYS else _redact(value)
    return event


def configure_logs(role: str, level: str = "info") -> None:
    """Send structlog and the standard library's loggers through one JSON formatter; `role` is on every line."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _with_role(role),
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Chatty libraries: their records are mostly noise, and some print addresses at debug level.
    for noisy in ("aiokafka", "faust", "mode", "aiohttp.access", "uvicorn.access", "urllib3", "google", "twilio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _with_role(role: str) -> Any:
    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["role"] = role
        return event

    return add


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; bind correlation_id and notification_id where they are known."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
