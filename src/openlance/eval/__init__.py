"""Benchmarks: each file yields requests and scores what comes back."""
