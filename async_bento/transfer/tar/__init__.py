"""A tar, without a tar file."""
