"""Arrays in, arrays out: the recurrence, its state, and the transformations."""
