"""The command line: one module for each subcommand, and what the subcommands share."""
