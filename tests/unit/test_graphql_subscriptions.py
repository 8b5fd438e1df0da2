"""What a subscription says of the frames of live status."""

from __future__ import annotations

from unittest.mock import create_autospec

import pytest

from api.graphql.context import Context
from api.graphql.subscriptions import items_of
from runtime.errors import RefusedError
from tracking.live.watchers import end_frame


@pytest.mark.parametrize("reason", ["restart", "reconnect", "revoked", "not_found"])
def test_each_end_of_a_watcher_is_an_error_with_its_code(reason: str) -> None:
    (item,) = items_of(end_frame(reason, "1-AQA"), set(), create_autospec(Context, instance=True))
    assert isinstance(item, RefusedError)
    assert item.code == reason
