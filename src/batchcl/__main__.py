"""`python -m batchcl` is the `batchcl` command."""

from batchcl.cli.app import main

main()
