"""The `batchcl` command, also as `python -m batchcl`."""

from batchcl.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
