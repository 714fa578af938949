"""From what a pass recorded to scores: kernels, the held-out problem, the scores, sets of sites, and intervals."""
