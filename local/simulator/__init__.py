"""The vendors of the local stack in one process: they speak SMTP, APNs and the HTTP vendors' formats, fail on request, and keep the truth.

The ground truth is an append-only log of every accept, on disk before the sender hears of it: what tests hold against
what Heliograph says it sent. Faults are scripted over HTTP; the wire formats stay the vendors' own.

May import runtime (health, logs). Never: anything of senders (it would prove itself right), memory of
a sender's identity, a network beyond loopback.
"""

from __future__ import annotations

from collections.abc import Mapping

APNS_KEY_FILE = "apns-key.p8"
"""In the data directory. Below: what an account of kind apns needs to know of the simulator's team and app."""
APNS_KEY_ID = "SIMULATOR1"
APNS_TEAM_ID = "HELIOGRAPH"
APNS_TOPIC = "localhost.heliograph.app"
HOOK_ACCOUNTS: Mapping[str, Mapping[str, str]] = {
    "webhook": {"secret": "whsec_aGVsaW9ncmFwaC1sb2NhbC1zdGFjay0x"},
    "slack": {},
    "teams": {},
}
"""The kinds whose receivers the simulator plays, with the keys that an account of each has."""
WRONG_SECRET = "wrong"
"""A key that no vendor takes; any other is taken."""
