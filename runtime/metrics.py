"""Every metric of the project, with type and meaning; names `heliograph_<thing>_<unit>[_total]`.

Labels are few and closed (stage, channel, lane, provider, outcome, topic); never a tenant, user or id.
May import prometheus_client. Never: code that decides.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# Ingest
ACCEPTED = Counter("heliograph_requests_accepted_total", "Requests acknowledged by the broker.", ["lane", "door"])
REFUSED = Counter("heliograph_requests_refused_total", "HTTP requests answered with an error, by its code.", ["code"])
INGEST_SECONDS = Histogram("heliograph_ingest_seconds", "HTTP request to answer.", ["route"], buckets=_FAST)

# Live status
LIVE_WATCHERS = Gauge("heliograph_live_watchers", "Open streams of live status in this process.")
LIVE_DELAY_SECONDS = Histogram(
    "heliograph_live_delay_seconds", "A fact at the broker to its frame handed to the connection.", buckets=_FAST
)
LIVE_DROPPED = Counter(
    "heliograph_live_dropped_total",
    "Frames dropped for watchers that read too slowly; they are told by a snapshot or a gap.",
)
LIVE_RESUMES = Counter(
    "heliograph_live_resumes_total",
    "Streams that went on from a place, by where the missed facts came from.",
    ["source"],
)

# GraphQL
GRAPHQL_REFUSED = Counter(
    "heliograph_graphql_refused_total",
    "GraphQL operations and connections refused before they ran, by the rule that they broke.",
    ["rule"],
)

# Callbacks
CALLBACKS = Counter(
    "heliograph_callbacks_total",
    "Reports in callbacks of providers, by outcome; a callback that is refused counts once.",
    ["vendor", "outcome"],
)
RECEIPTS_TAKEN = Counter("heliograph_receipts_total", "Receipts published, by what they say.", ["vendor", "state"])
CALLBACK_SECONDS = Histogram("heliograph_callback_seconds", "Callback to answer.", ["vendor"], buckets=_FAST)

# Bounces
BOUNCE_MAILS = Counter(
    "heliograph_bounce_mails_total",
    "Mails read from an account's mailbox of bounces, by outcome.",
    ["provider", "outcome"],
)
BOUNCE_MAILS_WAITING = Gauge(
    "heliograph_bounce_mails_waiting",
    "Mails in an account's mailbox of bounces that nobody has looked at.",
    ["provider"],
)
BOUNCE_MAILBOX_DOWN = Gauge(
    "heliograph_bounce_mailbox_down", "1 while an account's mailbox of bounces cannot be read, or told.", ["provider"]
)

# Relay
RELAYED = Counter("heliograph_relay_published_total", "Outbox rows published to compacted topics.", ["topic"])
OUTBOX_PENDING = Gauge("heliograph_relay_outbox_pending", "Outbox rows that wait to be published.")
OUTBOX_SET_ASIDE = Gauge("heliograph_relay_outbox_set_aside", "Outbox rows that Kafka refuses for their size.")
DEAD_DEVICES = Counter(
    "heliograph_dead_devices_total", "Devices that a provider reported as invalid, by outcome.", ["outcome"]
)
FEEDBACK_RUNNING = Gauge(
    "heliograph_feedback_running", "1 while the relay's process reads what providers call invalid, 0 while it cannot."
)
FEEDBACK_SKIPPED = Counter(
    "heliograph_feedback_passed_over_total", "Statuses that call something invalid and cannot be used.", ["cause"]
)
DROP_BRAKE = Gauge(
    "heliograph_dead_devices_brake",
    "1 while nothing of this account is dropped or suppressed; `other` is every account that is not configured here.",
    ["provider"],
)
BOUNCED_ADDRESSES = Counter(
    "heliograph_bounced_addresses_total",
    "Addresses that a provider reported as invalid, by outcome.",
    ["channel", "outcome"],
)

# Views
VIEW_KEYS = Gauge("heliograph_view_keys", "Keys held by a view of a compacted topic.", ["topic"])
VIEW_AGE_SECONDS = Gauge(
    "heliograph_view_age_seconds",
    "Since a view last had all that its topic has; 15 s more while nothing comes.",
    ["topic"],
)

# Router
ROUTED = Counter("heliograph_router_decisions_total", "Decisions of the router.", ["lane", "state"])
ROUTER_BATCH_SECONDS = Histogram(
    "heliograph_router_batch_seconds", "Reading a batch to its last acknowledgement.", ["lane"], buckets=_FAST
)
STAGE_DELAY_SECONDS = Histogram(
    "heliograph_stage_delay_seconds",
    "Acceptance of the notification to the start of the stage.",
    ["stage", "lane"],
    buckets=_FAST,
)

# Timers
TIMERS_PENDING = Gauge("heliograph_timers_pending", "Timers that wait.")
TIMERS_FIRED = Counter("heliograph_timers_fired_total", "Timers fired.", ["purpose"])
TIMER_LATENESS_SECONDS = Histogram(
    "heliograph_timer_lateness_seconds", "Due time to acknowledged firing.", buckets=_FAST
)

# Senders
SENDS = Counter("heliograph_sender_results_total", "Outcomes of claimed messages.", ["channel", "provider", "outcome"])
PROVIDER_SECONDS = Histogram(
    "heliograph_provider_request_seconds", "One provider request.", ["channel", "provider"], buckets=_FAST
)
LOOK_UPS = Counter(
    "heliograph_sender_look_ups_total",
    "Requests that ask a provider after a message in doubt, by outcome.",
    ["channel", "provider", "outcome"],
)
IN_FLIGHT = Gauge("heliograph_sender_in_flight", "Messages claimed and not recorded yet.", ["channel"])
DUPLICATES_DROPPED = Counter(
    "heliograph_sender_duplicates_dropped_total", "Dispatch records dropped by the ledger.", ["channel", "cause"]
)
IN_DOUBT = Counter("heliograph_sender_in_doubt_total", "Claimed messages without an outcome at takeover.", ["channel"])
REQUEST_GUARD = Counter(
    "heliograph_sender_request_guard_total",
    "Provider requests refused by the guard below all retries: page the on-call engineer.",
    ["channel"],
)
PARKED = Gauge("heliograph_sender_parked", "Messages that wait for an account or a recipient, unclaimed.", ["channel"])
ACCOUNT_DOWN_SECONDS = Gauge(
    "heliograph_provider_down_seconds",
    "How long an account has been failing, as its condition says; 0 while it works.",
    ["channel", "provider"],
)
ACCOUNT_STATE = Gauge("heliograph_provider_breaker_state", "0 closed, 1 half-open, 2 open.", ["channel", "provider"])
PROVIDER_SETTINGS = Gauge(
    "heliograph_provider_settings",
    "A number made of an account's settings: processes that show different ones were given different settings.",
    ["provider"],
)
UNKNOWN_CODES = Counter("heliograph_provider_unknown_codes_total", "Provider codes no table knows.", ["provider"])
COMMIT_SECONDS = Histogram(
    "heliograph_sender_commit_seconds", "One commit, of what is claimed and of what is released.", buckets=_FAST
)

# Hooks
HOOK_REQUESTS = Counter(
    "heliograph_hook_requests_total",
    "Requests to customers' endpoints, by outcome.",
    ["outcome"],
)
HOOK_SECONDS = Histogram("heliograph_hook_request_seconds", "One request to an endpoint.", buckets=_FAST)
HOOK_DELAY_SECONDS = Histogram(
    "heliograph_hook_delay_seconds", "A fact in Kafka to its delivery, of endpoints that work.", buckets=_FAST
)
HOOK_ENDPOINTS = Gauge(
    "heliograph_hook_endpoints", "Endpoints of this process's partitions, by condition.", ["condition"]
)
HOOK_LAG = Gauge(
    "heliograph_hook_lag_records", "The most offsets that an endpoint of this condition is behind.", ["condition"]
)
HOOK_DROPPED = Counter(
    "heliograph_hook_dropped_total", "Offsets that the topic had dropped before an endpoint was told of them."
)
HOOK_GIVEN_UP = Counter(
    "heliograph_hook_given_up_total", "Facts that an endpoint refused to the end of the schedule, and took others."
)
HOOK_SKIPPED = Counter("heliograph_hook_skipped_total", "Records that are no fact, by cause.", ["cause"])

# Sink
ROWS = Counter("heliograph_sink_rows_total", "Rows inserted.", ["table"])
DECODED = Counter(
    "heliograph_sink_decoded_total", "Records decoded by the sink: the store could not, or need not.", ["table"]
)
BATCHED = Gauge("heliograph_sink_batch_records", "Records read and not stored yet.")
INSERT_SECONDS = Histogram("heliograph_sink_insert_seconds", "One insert.", ["table"], buckets=_FAST)
RESIDUAL = Gauge("heliograph_accounting_residual", "What of the last two days does not add up.", ["finding"])

# Everywhere
DEAD_LETTERS = Counter("heliograph_dead_letters_total", "Records dead-lettered.", ["stage", "reason"])
DEAD_LETTER_BRAKE = Gauge(
    "heliograph_dead_letter_brake", "1 while a stage is held by a flood of records that cannot be used.", ["stage"]
)
CONSUMER_LAG = Gauge("heliograph_consumer_lag_records", "End offset minus committed offset.", ["group", "topic"])
CONSUMER_STUCK_SECONDS = Gauge(
    "heliograph_consumer_stuck_seconds",
    "Longest time a committed offset did not move while its partition has lag.",
    ["group"],
)
BUILD = Gauge("heliograph_build_info", "Always 1.", ["version", "role"])
