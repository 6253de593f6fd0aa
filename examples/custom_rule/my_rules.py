"""Shortest updates: the mean of the `count` updates with the smallest norm."""

from triskele_server.rules import rule


def _count(rows, options):
    return min(int(options.get("count", 2)), rows)


@rule("shortest", selected=_count, minimum={"count": 2})
def shortest(gram, *, count: int = 2):
    """1 for each of the `count` rows with the smallest norm, else 0."""
    return gram.diagonal().smallest(count)
