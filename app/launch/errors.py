"""What can prevent the server from starting.

LaunchError           the message is one line that says why and what to do
└── ChildStartError   a child process exited with code 1 and has already printed the reason on stderr
"""


class LaunchError(Exception):
    """The server cannot start."""


class ChildStartError(LaunchError):
    """A child process has already printed on stderr why it cannot start."""
