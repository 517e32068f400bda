"""What a denoiser call is, as data: families, conditions, caches, micro-batches. Knows no plan."""
