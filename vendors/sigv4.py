"""AWS Signature Version 4, by the vendor's own signer, and what AWS says of a signature it does not take.

The only module that imports botocore; nothing of it sends. A signature holds for minutes, so it is made with its request.
May import the shape of a table. Never: a service's format.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import botocore
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from pydantic import Field, SecretStr

from runtime.settings import ProviderSettings
from vendors.codes import CodeRule, same
from vendors.sender import ErrorClass
from vendors.settings import ProviderKeys, required_secret

COMMON: Mapping[str, CodeRule] = {
    **same(
        ErrorClass.ACCOUNT,
        {
            "AccessDenied": "the key may not do this",
            "AccessDeniedException": "the key may not do this",
            "ExpiredToken": "the session has ended",
            "ExpiredTokenException": "the session has ended",
            "IncompleteSignature": "the signature is not complete",
            "InvalidClientTokenId": "no such access key",
            "InvalidSignatureException": "the signature is wrong, or our clock is",
            "MissingAuthenticationToken": "no signature",
            "MissingAuthenticationTokenException": "no signature",
            "OptInRequired": "the account is not subscribed to the service",
            "RequestExpired": "our clock is wrong",
            "SignatureDoesNotMatch": "the secret key is wrong, or our clock is",
            "UnrecognizedClientException": "no such access key",
        },
    ),
    **same(
        ErrorClass.THROTTLED,
        {"Throttling": "too many requests", "ThrottlingException": "too many requests", "429": "too many requests"},
    ),
    **same(
        ErrorClass.IN_DOUBT,
        {
            "InternalFailure": "internal error",
            "ServiceUnavailable": "not available: it does not say since when",
            "500": "it does not say that nothing was sent",
            "502": "bad gateway",
            "503": "not available: it does not say since when",
            "504": "gateway timeout",
        },
    ),
}
"""Rows of every service's table. docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html"""
NOT_ALLOWED = ("AccessDenied", "AccessDeniedException")
"""Codes of a request whose signature is good and whose user may not make it."""


class AwsKeys(ProviderKeys):
    """Keys that every account of an AWS service has."""

    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]$")
    access_key: str = Field(min_length=1)
    secret_key: SecretStr | None = None
    secret_key_file: Path | None = None
    base_url: str | None = None
    """A test double's; else the region's."""

    def doubts(self, service: str) -> list[str]:
        """A region that the vendor's own list does not have, a key that is not for long."""
        from botocore.session import Session  # its data is of no use to who sends

        found, session = [], Session()
        regions = {
            region
            for each in session.get_available_partitions()
            for region in session.get_available_regions(service, each)
        }
        if self.region not in regions:
            found.append(f"region {self.region} is none where botocore {botocore.__version__} knows {service}")
        if self.access_key.startswith("ASIA"):
            found.append("access_key is a temporary one: it ends within hours, and its session token is not sent")
        return found

    def signer(self, provider: ProviderSettings, service: str) -> Signer:
        """Raises SettingsError without a secret key."""
        secret = required_secret(provider, "secret_key", self.secret_key, self.secret_key_file)
        return Signer(self.access_key, secret, service, self.region)


class Signer:
    """Signs requests to one service in one region."""

    def __init__(self, access_key: str, secret_key: str, service: str, region: str) -> None:
        self._auth = SigV4Auth(Credentials(access_key, secret_key), service, region)

    def sign(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> dict[str, str]:
        """The headers with what AWS wants to see."""
        request = AWSRequest(method=method, url=url, data=body or b"", headers=dict(headers))
        self._auth.add_auth(request)
        return dict(request.headers.items())
