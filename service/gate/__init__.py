"""Who gets in, and how much of it at the same time."""
