"""Files that are copied beside exported policies; they need nothing of this package."""
