"""One cluster for all tests here, and a database of its own for each."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator

import pytest

from otel_letta.store.postgres import PostgresStore
from tests.support.postgres import Cluster
from tests.unit.store.contract import Another

# Without the extra nothing here can be imported. With `-m postgres` that leaves no test, which pytest calls an error.
collect_ignore_glob = [] if importlib.util.find_spec("psycopg") else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        yield made


@pytest.fixture
def url(cluster: Cluster) -> str:
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return cluster.url(name)


@pytest.fixture
def another(url: str) -> Iterator[Another]:
    opened: list[PostgresStore] = []

    def open_once_more() -> PostgresStore:
        opened.append(PostgresStore(url, "the database"))
        opened[-1].open()
        return opened[-1]

    yield open_once_more
    for each in opened:
        each.close()


@pytest.fixture
def store(another: Another) -> PostgresStore:
    made = another()
    assert isinstance(made, PostgresStore)
    return made
