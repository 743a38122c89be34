"""An index on a Qdrant server: uploading to it, and searching there."""
