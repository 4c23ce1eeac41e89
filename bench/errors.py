"""What can go wrong with a benchmark.

BenchError   a program did not start, gave a wrong answer or lacks something; the section is not written
"""


class BenchError(Exception):
    """A benchmark failed; the message is one line for a person."""
