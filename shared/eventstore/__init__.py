"""The log: one append-only table, its ordered readers, its in-memory twin and its relay to JetStream."""
