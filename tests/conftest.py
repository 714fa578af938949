"""Settings of every test."""

import torch

# Tiny tensors gain nothing from threads, and two test processes on two cores lose minutes waiting for each other.
torch.set_num_threads(1)
