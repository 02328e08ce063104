"""The migrations of the database, which run when a registry starts."""
