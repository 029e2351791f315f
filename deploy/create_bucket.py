"""Make the bucket of the service's settings where it is missing: once, when a stack is set up.

By S3's own call, so it works with every store; in production, an operator makes the bucket.
"""

from __future__ import annotations

import sys

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from stream_api.config import Settings


def main() -> int:
    """Make it, or say why that failed."""
    settings = Settings()
    secret = settings.s3_secret_access_key
    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=None if secret is None else secret.get_secret_value(),
        config=Config(signature_version="s3v4", s3={"addressing_style": settings.s3_addressing_style}),
    )
    # AWS wants every region named but its first one, which it wants unnamed.
    where = {} if settings.s3_region == "us-east-1" else {"LocationConstraint": settings.s3_region}
    arguments = {"CreateBucketConfiguration": where} if where else {}
    try:
        client.create_bucket(Bucket=settings.bucket, **arguments)  # type: ignore[attr-defined]
    except ClientError as exc:
        if exc.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
            print(f"create_bucket: {settings.bucket}: {exc}", file=sys.stderr)
            return 1
    except BotoCoreError as exc:
        print(f"create_bucket: {exc}", file=sys.stderr)
        return 1
    print(f"bucket {settings.bucket} is there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
