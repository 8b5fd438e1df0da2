"""The results of a function of bytes, kept for the arguments it had last, within a limit of bytes and not of entries.

    parse = ByteCache(parse_template, max_bytes=32 << 20)
    parse(raw)          the result of parse_template(raw); what it raises is not kept

May import the standard library. Never: a use from several threads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class ByteCache(Generic[Result]):
    """The least recently used argument is dropped first; one that is larger than the limit is never kept."""

    def __init__(self, function: Callable[[bytes], Result], max_bytes: int) -> None:
        """`max_bytes`: of the arguments together. Results are some multiple of them, which the limit has to allow for."""
        self._function = function
        self._max_bytes = max_bytes
        self._results: OrderedDict[bytes, Result] = OrderedDict()
        self.bytes_kept = 0

    def __call__(self, argument: bytes) -> Result:
        try:
            result = self._results[argument]
        except KeyError:
            return self._keep(argument, self._function(argument))
        self._results.move_to_end(argument)
        return result

    def _keep(self, argument: bytes, result: Result) -> Result:
        if len(argument) <= self._max_bytes:
            self._results[argument] = result
            self.bytes_kept += len(argument)
            while self.bytes_kept > self._max_bytes:
                dropped, _ = self._results.popitem(last=False)
                self.bytes_kept -= len(dropped)
        return result
