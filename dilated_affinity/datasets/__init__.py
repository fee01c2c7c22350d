"""Data sets: class tables and palettes, TFDS builders (one folder each), loading."""
