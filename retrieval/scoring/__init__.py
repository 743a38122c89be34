"""What a passage scores: words (BM25), vectors (cosine), both fused, and what a score is worth."""
