"""How good an index is, and why: evaluation, tuning, explanation, check-up."""
