"""RDDM defocus deblurring (Residual Diffusion Deblurring Model, Feng et al., AAAI 2025) without any host."""

__version__ = "0.1.0"
