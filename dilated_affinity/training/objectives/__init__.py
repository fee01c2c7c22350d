"""What a run trains beside the classes: one file for each objective, and their table."""
