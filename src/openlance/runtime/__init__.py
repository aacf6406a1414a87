"""Checkpoints at work: loading, offload, quantization, adapters, media in model space."""
