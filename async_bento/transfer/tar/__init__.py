"""Tar bytes from a directory and a directory from tar bytes, without a tar file. No module here knows the network."""
