"""Training autoencoders whose latents the decoder draws in."""
