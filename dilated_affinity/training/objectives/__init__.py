"""Training objectives beside the classes: a file for each, and their table."""
