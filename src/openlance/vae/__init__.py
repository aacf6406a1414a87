"""The VAE: pixels to latents and back."""
