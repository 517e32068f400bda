"""`python -m sagediff` is `sagediff`."""

import sys

from sagediff.cli import main

sys.exit(main())
