"""The local store of bentos and models, in BentoML's layout."""
