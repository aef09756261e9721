"""This service's SQL, by name."""

from pathlib import Path

from shared.sql import load_queries

QUERIES = load_queries(Path(__file__).with_name("sql") / "queries.sql")
