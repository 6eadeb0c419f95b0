"""Active learning: which unlabelled case is worth most to annotate next, and who annotates it."""
