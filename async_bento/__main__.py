"""`python -m async_bento` is `async-bento`."""

from async_bento.cli import main

main()
