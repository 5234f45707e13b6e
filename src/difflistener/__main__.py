"""`python -m difflistener` is the command line (torchrun needs it)."""

import sys

from difflistener.cli import main

sys.exit(main())
