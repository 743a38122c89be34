"""Other systems' languages: `speaker.py` understands Speaker's keys."""
