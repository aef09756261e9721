"""Owns datasets, artifacts and telemetry: bytes in an object store, facts in the log, report lines in tables."""
