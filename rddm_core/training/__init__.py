"""Training of the estimator and of the joint pre-deblur and denoising networks."""
