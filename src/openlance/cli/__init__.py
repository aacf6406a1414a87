"""The `openlance` command: one file per subcommand, each imported only when it is the one that was asked for."""
