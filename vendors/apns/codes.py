"""APNs' reasons, and the HTTP statuses that come without one; data.

DeviceTokenNotForTopic and TopicDisallowed say that the account's topic is wrong: a device is never dropped for them.
BadDeviceToken may also mean the wrong environment (sandbox), which is why feedback has a brake.
May import the shape of a table. Never: a request.
"""

from __future__ import annotations

from vendors.codes import CodeRule, Codes, same
from vendors.sender import ErrorClass

EXPIRED = "ExpiredProviderToken"

CODES = Codes(
    source="developer.apple.com/documentation/usernotifications/handling-notification-responses-from-apns",
    rows={
        **same(
            ErrorClass.PERMANENT_RECIPIENT,
            {
                "BadDeviceToken": "not a token, or one of the other environment",
                "Unregistered": "the app is gone, since the time that is given",
                "ExpiredToken": "the token has expired",
                "410": "the device is gone",
            },
        ),
        **same(
            ErrorClass.PERMANENT_MESSAGE,
            {
                "BadCollapseId": "the collapse id is too long",
                "BadExpirationDate": "the expiry is not a valid time",
                "BadMessageId": "the id is no UUID",
                "BadPath": "the path is wrong",
                "BadPriority": "the priority is wrong",
                "BadTopic": "the topic is wrong",
                "DuplicateHeaders": "a header is repeated",
                "InvalidPushType": "the push type is wrong",
                "MethodNotAllowed": "not a POST",
                "MissingDeviceToken": "no token in the path",
                "MissingTopic": "no topic",
                "PayloadEmpty": "no payload",
                "PayloadTooLarge": "the payload is too large",
                "404": "the path is wrong",
                "405": "not a POST",
                "413": "the payload is too large",
            },
        ),
        "TooManyRequests": CodeRule(ErrorClass.THROTTLED, "too many to this one device", account_wide=False),
        **same(
            ErrorClass.THROTTLED,
            {"TooManyProviderTokenUpdates": "the provider token was renewed too often", "429": "too many requests"},
        ),
        **same(
            ErrorClass.ACCOUNT,
            {
                "BadCertificate": "the certificate is wrong",
                "BadCertificateEnvironment": "the certificate is of the other environment",
                "BadEnvironmentKeyIdInToken": "the key is of the other environment",
                "DeviceTokenNotForTopic": "the topic is not the token's: ours is wrong",
                EXPIRED: "the provider token is over an hour old",
                "Forbidden": "this action is not allowed",
                "InvalidProviderToken": "the provider token is wrong, or its key was revoked",
                "MissingProviderToken": "no provider token",
                "TopicDisallowed": "pushes to this topic are not allowed",
                "UnrelatedKeyIdInToken": "the key belongs to another topic",
                "401": "unauthorised",
                "403": "forbidden",
            },
        ),
        **same(ErrorClass.TRANSIENT, {"IdleTimeout": "the connection was idle"}),
        **same(
            ErrorClass.IN_DOUBT,
            {
                "ServiceUnavailable": "not available: it does not say since when",
                "Shutdown": "the server is going down",
                "503": "not available: it does not say since when",
                "InternalServerError": "it does not say that nothing was sent",
                "500": "it does not say that nothing was sent",
                "502": "bad gateway",
                "504": "gateway timeout",
            },
        ),
    },
)
RENEWED = CodeRule(ErrorClass.TRANSIENT, "signed again: the next claim carries the new provider token")
