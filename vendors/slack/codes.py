"""The words with which Slack refuses an incoming webhook's message, and its HTTP statuses; data.

The URL is the credential: one that is revoked, whose channel or workspace is gone or may not be posted to, is gone itself.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import Codes, same
from vendors.sender import ErrorClass


def word_key(word: str) -> str:
    """The key of a word: some are other things elsewhere."""
    return f"slack-{word}"


CODES = Codes(
    source="docs.slack.dev/messaging/sending-messages-using-incoming-webhooks,"
    " api.slack.com/changelog/2016-05-17-changes-to-errors-for-incoming-webhooks (slack.dev)",
    rows={
        **same(
            ErrorClass.PERMANENT_RECIPIENT,
            {
                word_key("channel_not_found"): "the channel does not exist",
                word_key("channel_is_archived"): "the channel is archived",
                word_key("no_service"): "the webhook was removed or disabled",
                word_key("no_service_id"): "the webhook's id is missing",
                word_key("no_active_hooks"): "the webhook is disabled",
                word_key("no_team"): "the workspace does not exist",
                word_key("team_disabled"): "the workspace is no longer active",
                word_key("invalid_token"): "the webhook's token is not valid",
                word_key("action_prohibited"): "an administrator forbids it",
                word_key("posting_to_general_channel_denied"): "only administrators post to that channel",
                "404": "there is no such webhook",
                "410": "the webhook is gone",
            },
        ),
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {
                word_key("invalid_payload"): "the payload is wrong",
                word_key("invalid_blocks"): "a block is wrong",
                word_key("invalid_blocks_format"): "the blocks are no list of blocks",
                word_key("no_text"): "there is no text",
                word_key("too_many_attachments"): "more than 100 attachments",
                word_key("user_not_found"): "the user that it is addressed to does not exist",
                "400": "the request is wrong",
                "413": "the request is too large",
            },
        ),
        **same(
            ErrorClass.THROTTLED,
            {"429": "more than about one message a second"},
            account_wide=False,
        ),
        **same(
            ErrorClass.IN_DOUBT,
            {
                word_key("rollup_error"): "something went wrong at Slack",
                "500": "it does not say that nothing was posted",
                "502": "bad gateway",
                "503": "not available: it does not say since when",
                "504": "gateway timeout",
            },
        ),
    },
)
