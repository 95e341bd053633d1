"""Objects in S3, and in stores with the same interface (MinIO, Ceph, R2, ...), whose address is AWS_ENDPOINT_URL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import urllib3

from cvexp.errors import UserError

ATTEMPTS = 5  # to read the bytes of an object; boto3 repeats failing requests itself
CHUNK_BYTES = 1 << 20
TIMEOUT = 30.0  # seconds without receiving a byte

_REMEDIES = {
    "NoSuchKey": "there is no such object; check dataset.root=",
    "NoSuchBucket": "there is no such bucket; check dataset.root=, and AWS_ENDPOINT_URL if the store is not Amazon's",
    "AccessDenied": "access is denied; check the permissions of your credentials",
    "InvalidAccessKeyId": "the access key is unknown; check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    "ExpiredToken": "the credentials have expired; get new ones",
}
_NO_CREDENTIALS = (
    "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a public bucket needs "
    "none with its https:// address"
)

_clients: dict[int, Any] = {}  # by process, because a client must not be used after a fork


def fetch(url: str, path: Path, max_bytes: int) -> None:
    """Fetch an object into a file, which is overwritten.

    Args:
        url: Its address, s3://BUCKET/KEY.
        path: The file.
        max_bytes: Maximum size of the object.

    Raises:
        UserError: if the object can't be fetched, or is too large.
    """
    try:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
    except ImportError as error:
        raise UserError(f"{url}: S3 needs the package boto3; install it with: pip install 'cvexp[s3]'") from error
    try:
        with path.open("wb") as file:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return _append(url, file, max_bytes)
                except (ConnectionError, urllib3.exceptions.HTTPError, BotoCoreError) as error:
                    # The connection was lost. What has arrived is kept.
                    if attempt == ATTEMPTS or isinstance(error, NoCredentialsError | PartialCredentialsError):
                        raise
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise UserError(f"{url}: {_NO_CREDENTIALS}") from error
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code"))
        raise UserError(f"{url}: {_REMEDIES.get(code, f'the store answers {code}; check dataset.root=')}") from error
    except (ConnectionError, urllib3.exceptions.HTTPError, BotoCoreError) as error:
        raise UserError(
            f"{url}: the store can't be reached, or drops the connection ({type(error).__name__}); check the "
            "connection, AWS_ENDPOINT_URL and AWS_PROFILE, and start again"
        ) from error


def _append(url: str, file: Any, max_bytes: int) -> None:
    """Append the missing bytes of an object to a file."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    start = file.tell()
    response = _client().get_object(Bucket=bucket, Key=key, **({"Range": f"bytes={start}-"} if start else {}))
    total = start + int(response["ContentLength"])
    if total > max_bytes:
        raise UserError(f"{url}: it has {total} bytes, but at most {max_bytes} are expected; check dataset.root=")
    for chunk in response["Body"].iter_chunks(CHUNK_BYTES):
        file.write(chunk)


def _client() -> Any:
    """Return the client of this process."""
    if os.getpid() not in _clients:
        import boto3
        from botocore.config import Config

        options = Config(retries={"max_attempts": ATTEMPTS, "mode": "standard"}, read_timeout=TIMEOUT)
        _clients[os.getpid()] = boto3.session.Session().client("s3", config=options)
    return _clients[os.getpid()]
