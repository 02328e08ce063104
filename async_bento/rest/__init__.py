"""What is said to the registry."""
