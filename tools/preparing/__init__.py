"""Models and data, from where they are to a directory under `models/` or `data/`."""
