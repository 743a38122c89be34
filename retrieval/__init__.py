"""Your documents -> passages -> an index on disk -> search."""
