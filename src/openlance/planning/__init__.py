"""What a request or a stage will take, before it runs."""
