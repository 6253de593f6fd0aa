"""`python -m triskele`: the same as the command `triskele`."""

import sys

from triskele.cli import main

sys.exit(main())
