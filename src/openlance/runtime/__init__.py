"""Checkpoints at work: loading, placing, few bits, adapters, media in model space."""
