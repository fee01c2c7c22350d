"""The commands: thin, all work is done by the library."""
