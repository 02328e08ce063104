"""`python -m async_bento` is `async-bento`."""

from async_bento.cli import main

if __name__ == "__main__":
    main()
