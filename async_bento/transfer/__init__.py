"""Uploads, downloads and copies of tars, with resume and verification."""
