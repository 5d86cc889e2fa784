"""The `torch-crl` command, one file a subcommand. Importing it is light."""
