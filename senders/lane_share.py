"""The share of a lane: how much of what lanes use together one of them may fill.

A blast on bulk therefore always leaves capacity for the other lanes: of the window of messages in flight, of each account, of
what may be parked and read ahead.
May import the standard library. Never: a limit, a message.
"""

from __future__ import annotations

LANE_SHARE = {"critical": 1.0, "normal": 0.75, "bulk": 0.5}
