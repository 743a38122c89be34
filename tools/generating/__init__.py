"""Data made by chat models: what tools/generate_*.py and tools/extend_*.py share."""
