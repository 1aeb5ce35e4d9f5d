"""Priors trained elsewhere: diffusers `UNet2DModel` folders (diffusers_unet.py) and guided-diffusion networks (adm.py).

Both are the same U-Net (unet.py) trained at the timesteps of a discrete variance-preserving chain (chain.py); a loader
translates names and settings, and a card written by the user (card.py) says what the numbers mean.
"""
