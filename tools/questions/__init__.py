"""Documents to questions: a private test set, and retrieval-aware training rows."""
