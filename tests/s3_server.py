"""An S3 server in a thread of this process; the programs that tests start reach it, too."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator

import pytest

BUCKET = "results"


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a bucket there. The environment says where the server is while the context is open."""
    import boto3  # slow to import, and needed by few tests
    import botocore.session
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # Each client reads the descriptions of the services, 50 ms of JSON, unless they have one reader.
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}/denoised"
    server.stop()
