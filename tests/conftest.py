"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# A property takes as long as the machine lets it: other tests run beside it.
settings.register_profile("heliograph", deadline=None)
settings.load_profile("heliograph")
