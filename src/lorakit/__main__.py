"""`python -m lorakit`: the command line."""

import sys

from lorakit.cli.__main__ import main

sys.exit(main())
