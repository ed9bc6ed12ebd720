"""`python -m kvledger` is `kvledger`."""

import sys

from kvledger.cli import main

sys.exit(main())
