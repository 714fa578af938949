"""The mathematics: first-order maps, closed forms, edit forms, tangent features and kernels."""
