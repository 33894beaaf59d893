"""Where a bucket is and who may use it, as every AWS client on this machine would find it: environment, profile, instance."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from sppo.errors import StoreError


@dataclass(frozen=True)
class Endpoint:
    """A bucket's address."""

    host: str
    """With a port where it is not the scheme's own, and the bucket where the server wants it there."""
    path: str
    """What comes before every key: the bucket, or nothing."""
    tls: bool
    region: str
    checksums: bool
    """Whether uploads may carry checksums: some older servers refuse them (`request_checksum_calculation`)."""
    ca_bundle: str | None
    """A file of certificates to trust besides the system's own (`AWS_CA_BUNDLE`)."""
    proxy: bool
    credentials: Callable[[], Any] = field(repr=False)
    """botocore's credentials as they are now: temporary ones change."""

    def credentials_provider(self) -> Any:
        """The same for awscrt."""
        from awscrt import auth

        def now() -> Any:
            frozen = self.credentials()
            return auth.AwsCredentials(frozen.access_key, frozen.secret_key, frozen.token)

        return auth.AwsCredentialsProvider.new_delegate(now)

    def tls_options(self) -> Any:
        """For awscrt: None for the system's own certificates."""
        from awscrt import io

        if not (self.tls and self.ca_bundle):
            return None
        options = io.TlsContextOptions()
        options.override_default_trust_store_from_path(None, self.ca_bundle)
        return io.ClientTlsContext(options).new_connection_options()


def find_endpoint(bucket: str) -> Endpoint:
    """A bucket's endpoint. Raises StoreError if no credentials are found."""
    from botocore.config import Config
    from botocore.session import Session
    from botocore.utils import get_environ_proxies

    session = Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise StoreError(
            f"no credentials for s3://{bucket}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile"
        )
    client = session.create_client("s3", config=Config(signature_version="s3v4"))
    # the one way to hear from botocore where it would send a request, with the bucket in the host or in the path
    url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "-"}))
    region = client.meta.region_name
    return Endpoint(
        host=url.netloc,
        path=url.path.removesuffix("-").strip("/"),
        tls=url.scheme == "https",
        region="us-east-1" if region in (None, "aws-global") else region,
        checksums=client.meta.config.request_checksum_calculation != "when_required",
        ca_bundle=session.get_config_variable("ca_bundle"),
        proxy=bool(get_environ_proxies(f"{url.scheme}://{url.netloc}")),
        credentials=credentials.get_frozen_credentials,
    )
