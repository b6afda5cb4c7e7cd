"""Variables in, variables out: the optimizer as an object."""
