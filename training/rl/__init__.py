"""Learning from the model's own answers: rounds in which it answers prompts, is scored, and learns from the scores."""
