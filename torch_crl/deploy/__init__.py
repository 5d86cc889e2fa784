"""Takes trained policies out of the package: files that a robot runs without torch."""
