"""What lies on this disk, in BentoML's own layout."""
