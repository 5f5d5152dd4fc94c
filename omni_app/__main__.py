"""`python -m omni_app`."""

import sys

from omni_app.cli import main

if __name__ == "__main__":
    sys.exit(main())
