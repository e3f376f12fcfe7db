"""An S3 server on localhost, with buckets of its own for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

SECRET = "wJalrXUtnFEMIsecret"

_numbers = itertools.count(1)


@contextmanager
def serve() -> Iterator[str]:
    """Run a server in a thread; gives its address."""
    moto_server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto_server.start()
    host, port = moto_server.get_host_and_port()
    yield f"http://{host}:{port}"
    moto_server.stop()


def environment(endpoint: str) -> dict[str, str]:
    """Variables with which boto and s3fs use this server and nothing of the user's."""
    settings = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": SECRET, "DEFAULT_REGION": "us-east-1"}
    settings |= {"ENDPOINT_URL": endpoint, "EC2_METADATA_DISABLED": "true", "CONFIG_FILE": "/none"}
    settings |= {"SHARED_CREDENTIALS_FILE": "/none"}
    return {f"AWS_{name}": value for name, value in settings.items()}


class Bucket:
    """A bucket of the local server; the environment is that of ``environment``."""

    def __init__(self, endpoint: str) -> None:
        self.name = f"feed-{next(_numbers)}"
        self.client = boto3.client("s3", endpoint_url=endpoint)
        self.client.create_bucket(Bucket=self.name)

    def put(self, **objects: bytes) -> None:
        for key, body in objects.items():
            self.client.put_object(Bucket=self.name, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    def names(self) -> list[str]:
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def url(self, key: str) -> str:
        return f"s3://{self.name}/{key}"
