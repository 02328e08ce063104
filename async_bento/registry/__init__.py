"""A registry to run yourself."""
