"""A stage that learns from what rewards say of its own results (`openlance.rl`)."""
