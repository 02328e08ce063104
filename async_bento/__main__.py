"""The process of the command: `async-bento`, or `python -m async_bento`."""

from async_bento._core.garbage import deferred_collection


def main() -> None:
    """Run the command in a process of its own; `async_bento.cli.main` is the command for other programs."""
    with deferred_collection():
        # Imported here: the collection is deferred for the imports above all.
        from async_bento.cli import main as command

        command()


if __name__ == "__main__":
    main()
