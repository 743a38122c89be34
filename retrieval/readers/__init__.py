"""One file per document format: a function from decoded text to (title or '', blocks). No I/O, never raises."""
