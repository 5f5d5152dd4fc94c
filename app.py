"""What `python app.py` and Hugging Face Spaces run."""

import logging

from omni_app.settings import Settings
from omni_app.ui.launch import launch

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    launch(Settings(_cli_parse_args=True))  # type: ignore[call-arg]
