"""What can go wrong with a benchmark.

BenchError   a program did not start, answered wrongly or lacks something; nothing of its section is written
"""


class BenchError(Exception):
    """The message is one line for a person."""
