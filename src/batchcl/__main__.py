"""The `batchcl` command, also as `python -m batchcl`."""

from batchcl.cli.app import main as run
from batchcl.memory import give_back_memory


def main() -> None:
    """Settle how the process takes memory, then run the command line."""
    give_back_memory()
    run()


if __name__ == "__main__":
    main()
