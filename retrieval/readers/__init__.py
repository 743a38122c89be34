"""One file per document format, and what they share. `files.py` knows the formats; `worker.py` runs them guarded.

The readers of decoded text (plain, markdown, web) are functions from text to (title or '', blocks) that never raise
and take time in proportion to the length. The others raise ValueError with the bare reason for what cannot be read.
"""
