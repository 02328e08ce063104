"""The pages of a registry, for people: server-rendered HTML, read-only."""
