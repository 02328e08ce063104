"""Code that every other package uses; it imports only `config` and `errors`."""
