"""What a denoiser call is, as data: families, conditions, caches, micro-batches, schedulers. Knows no plan."""
