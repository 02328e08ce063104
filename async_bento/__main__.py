"""Run `async-bento` as `python -m async_bento`."""

from async_bento.cli import main

if __name__ == "__main__":
    main()
