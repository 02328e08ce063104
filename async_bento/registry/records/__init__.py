"""The records of repositories, items, bytes, tokens and events, in SQLite or in PostgreSQL."""
