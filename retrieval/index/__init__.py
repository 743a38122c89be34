"""An index on disk: its manifest, its segments, and how they are checked, locked and swept."""
