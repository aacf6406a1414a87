"""The release's inputs and its command."""
