"""How fast async-bento is, beside BentoML's own client and tools that copy a bare tar: see `run.py`."""
