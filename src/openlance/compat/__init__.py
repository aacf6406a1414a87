"""The release's inputs, and parity with its code."""
