"""Teachers: networks of ours and of others, one call ``(image, prompts, modality) -> probabilities``."""
