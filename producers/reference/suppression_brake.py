"""The brake on mass suppression: too many recipients of an account reported invalid at once are not the recipients' fault.

While more than 5 % (and at least 20) of an account's messages of the last minute are reported invalid, nothing of that account
is removed or suppressed; then a topic, a key or a setting is wrong. The brake releases by itself.
May import the standard library. Never: a clock, a store, a decision what is invalid.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0
MIN_INVALID = 20
MAX_SHARE = 0.05


class SuppressionBrake:
    """Per account, the messages of the last minute and how many of them were called invalid; no clock of its own."""

    def __init__(self) -> None:
        self._windows: dict[str, deque[tuple[float, int, int]]] = {}
        """(when, messages, of them invalid), one entry per time that is reported."""

    def saw(self, provider: str, now_s: float, *, messages: int = 1, invalid: int = 0) -> None:
        """So many messages of this account ended, of them so many invalid."""
        window = self._windows.setdefault(provider, deque())
        _, seen, bad = window.pop() if window and window[-1][0] == now_s else (now_s, 0, 0)
        window.append((now_s, seen + messages, bad + invalid))

    def holds(self, provider: str, now_s: float) -> bool:
        """Whether nothing of this account may be dropped or suppressed now."""
        window = self._windows.get(provider, deque())
        while window and window[0][0] <= now_s - WINDOW_S:
            window.popleft()
        seen, invalid = (sum(entry[column] for entry in window) for column in (1, 2))
        return invalid >= MIN_INVALID and invalid > MAX_SHARE * seen

    @property
    def providers(self) -> list[str]:
        """Every account seen."""
        return list(self._windows)
