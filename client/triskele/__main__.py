"""`python -m triskele`: the same as the command `triskele`."""

from triskele.cli import main

main()
