"""Benchmarks of async-bento against BentoML's own client and tools that copy a tar; start with `run.py`."""
