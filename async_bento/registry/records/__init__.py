"""The records of repositories and items, in SQLite or PostgreSQL."""
