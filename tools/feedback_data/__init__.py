"""What `tools/feedback.py` works with: reading logs, masking, making rows, reviewing."""
