"""What goes in, what comes out: texts -> verdicts -> allow, warn or block."""
