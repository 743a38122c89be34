"""What `tools/improve.py` works with: steps that are resumed, the gate, the report, the switch."""
