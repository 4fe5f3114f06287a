"""`python -m prospect` is the command line, also under `torchrun -m prospect`."""

import sys

from prospect.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
