"""An object store on loopback that speaks S3: moto's server, with faults put in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pytest
from botocore.loaders import JSONFileLoader
from moto import settings
from moto.server import ThreadedMotoServer


@dataclass
class ObjectStore:
    """A server with one bucket; `url` is a prefix in it of its own for each test."""

    server: Any
    endpoint: str
    url: str = "s3://team/edgeq"

    def files(self) -> list[str]:
        return sorted(self._system().find(self.url.removeprefix("s3://")))

    def read(self, path: str) -> bytes:
        data: bytes = self._system().cat_file(path)
        return data

    def write(self, path: str, data: bytes) -> None:
        self._system().pipe_file(path, data)

    def remove(self, path: str) -> None:
        self._system().rm_file(path)

    @contextlib.contextmanager
    def without_rights(self) -> Iterator[None]:
        """Refuse all requests, as one does whose key is not known."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
            yield

    def _system(self) -> Any:
        return fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Start the server, and let the environment lead to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    # botocore parses megabytes that describe services anew for each client
    loaded = functools.cache(functools.partial(JSONFileLoader.load_file, JSONFileLoader()))
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda _, path: loaded(path))
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "of-the-tests")
        store = ObjectStore(server=server, endpoint=endpoint)
        store._system().mkdir("team")
        yield store
    server.stop()
