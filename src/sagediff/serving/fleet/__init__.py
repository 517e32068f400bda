"""Many engines in other processes behind the face of one. Knows not how messages travel."""
