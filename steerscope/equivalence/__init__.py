"""The mathematics: first-order maps, closed forms, edit families, tangent features and kernels."""
