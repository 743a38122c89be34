"""Building an index and changing it."""
