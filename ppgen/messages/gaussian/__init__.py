"""Chains of Gaussian latents."""
