"""The `torch-crl` command, one module for each subcommand. Importing it loads nothing large."""
