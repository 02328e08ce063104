"""Code that every package stands on."""
