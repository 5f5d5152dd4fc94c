"""What `python app.py` and Hugging Face Spaces run: `python -m omni_app run`."""

import sys

from omni_app.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
