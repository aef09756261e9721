"""This service's SQL, by name."""

from pathlib import Path

from shared.sql import load_queries

_SQL = Path(__file__).with_name("sql")
QUERIES = load_queries(_SQL / "queries.sql")
WORKER_QUERIES = load_queries(_SQL / "workers.sql")
