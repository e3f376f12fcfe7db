"""A local S3 server and buckets, for the tests of feeds and of the shared store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.s3 import Bucket


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    from tests.s3 import serve  # imports moto, which most tests need not wait for

    with serve() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    import s3fs

    from tests.s3 import Bucket, environment

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment(s3_server).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield Bucket(s3_server)
    s3fs.S3FileSystem.clear_instance_cache()
