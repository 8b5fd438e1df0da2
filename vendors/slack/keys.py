"""The keys of a Slack account: none, as each address is its own credential.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from vendors.settings import ProviderKeys


class SlackKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind slack."""
