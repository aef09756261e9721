"""What storage calls: the object store, the file system, its report tables."""
