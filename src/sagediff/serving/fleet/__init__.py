"""Many engines in other processes, used like one. Does not know how messages travel."""
