"""The `batchcl` command, also as `python -m batchcl`."""

import os
import signal
from types import FrameType

if os.getpid() == 1:

    def _end(number: int, _: FrameType | None) -> None:
        os._exit(128 + number)

    # The kernel drops signals that the first process of a container does not handle, instead of ending it.
    # This comes before the imports: a run that misses its SIGTERM would start the model.
    for _number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(_number) is signal.SIG_DFL:
            signal.signal(_number, _end)

from batchcl.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
