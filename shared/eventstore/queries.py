"""The named queries of the log, read once."""

from pathlib import Path

from shared.sql import load_queries

QUERIES = load_queries(Path(__file__).parent / "sql" / "queries.sql")
