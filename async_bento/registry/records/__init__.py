"""The records of repositories and items."""
