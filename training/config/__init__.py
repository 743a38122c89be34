"""What a run can be told (`schema.py`), and how it is told (`door.py`); `compat/` speaks older systems' languages."""
