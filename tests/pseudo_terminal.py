"""Functions for `preexec_fn` of `subprocess.Popen` and of `tests.fork_server.Popen`, which finds them by name."""

from __future__ import annotations

import fcntl
import signal
import termios


def restore_sigint() -> None:
    """Restore SIGINT as in a program that a shell starts, however the tests were started."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def take_terminal() -> None:
    """Make stdin the controlling terminal, so that Ctrl-C sends SIGINT."""
    restore_sigint()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
