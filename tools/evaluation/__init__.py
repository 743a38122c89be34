"""What tools/evaluate.py measures: perplexity, and answers to many prompts."""
