"""One machine, no Docker: real Postgres and NATS from wheels, and our processes, under one supervisor."""
