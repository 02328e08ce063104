"""The client API: bentos and models, async and blocking."""
