"""What the gateway calls: the owners, the object store, its own tables and files."""
