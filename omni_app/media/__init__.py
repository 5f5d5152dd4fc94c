"""Files in: whatever a visitor sends becomes a checked, bounded, normalised Part, or MediaRejected in plain words."""

from omni_app.media.intake import ingest, ingest_data_url
from omni_app.media.limits import Limits, check_count, check_text
from omni_app.media.names import display_name

__all__ = ["Limits", "check_count", "check_text", "display_name", "ingest", "ingest_data_url"]
