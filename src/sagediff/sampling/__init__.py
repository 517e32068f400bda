"""A share plan carried out inside the loop of a diffusers pipeline."""
