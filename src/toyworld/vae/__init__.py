"""How nano's VAE is trained, on pictures and then on clips of the world."""
