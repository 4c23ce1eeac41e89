"""What can prevent the server from starting.

LaunchError           the message is one line that says why and what to do
├── StoreAbsent       Redis does not answer; it may come later
└── ChildStartError   a child process exited with code 1 and has already printed the reason on stderr
"""


class LaunchError(Exception):
    """The server cannot start."""


class StoreAbsent(LaunchError):
    """Redis does not answer."""


class ChildStartError(LaunchError):
    """A child process has already printed on stderr why it cannot start."""
