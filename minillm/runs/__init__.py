"""A run's directory: its figures and checkpoints as they are written and read again."""
