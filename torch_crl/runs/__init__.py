"""A run on disk: its directory, the lock of its writer, and the files that are read back."""
