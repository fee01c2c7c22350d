"""What lies on disk: class tables and palettes, TFDS builders (one folder each), loading."""
