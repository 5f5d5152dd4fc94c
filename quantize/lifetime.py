"""For a process that must not outlive the one that started it, whatever becomes of that one."""

from __future__ import annotations

import os
import signal
import threading


def end_with_caller() -> None:
    """From now on this process gets SIGTERM when its standard input ends: a pipe that the caller keeps open."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would make our own exit fail
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
