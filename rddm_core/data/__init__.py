"""Training data: photographs, real pairs, masks, and defocus rendered from sharp photographs."""
