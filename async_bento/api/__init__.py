"""The client API: bentos and models, async and blocking. The command and Python programs call it."""
