"""How well scores of sites foresaw what training there came to: the statistics, from arrays alone."""
