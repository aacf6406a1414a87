"""Benchmarks: prompts, edits and questions of the world, and what is right."""
