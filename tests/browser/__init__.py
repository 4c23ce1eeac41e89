"""A package, so that fixtures can have its scope."""
