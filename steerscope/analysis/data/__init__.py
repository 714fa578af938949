"""What the model is asked and should answer, and the token sequences made of it."""
