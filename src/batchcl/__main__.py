"""The `batchcl` command, also as `python -m batchcl`."""

from batchcl.memory import give_back_memory


def main() -> None:
    """Settle how the process takes memory, then load and run the command line."""
    give_back_memory()
    from batchcl.cli.app import main as run  # noqa: PLC0415 - loads pyarrow

    run()


if __name__ == "__main__":
    main()
