"""The store's tests use the jobs and requests that `tests/worker` makes."""

from tests.worker.conftest import create, kinds_of, request_of, store, wait_for

__all__ = ["create", "kinds_of", "request_of", "store", "wait_for"]
