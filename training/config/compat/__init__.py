"""Other systems' languages: `speaker.py` understands Speaker's keys, `llm_codebase.py` llm_codebase's arguments."""
