"""What a fit has done: how much noise it memorized, how its risk moves, what its kernel spans."""
