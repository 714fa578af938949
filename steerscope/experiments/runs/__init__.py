"""What training and evaluation leave behind: accuracies, evaluations, records, and a folder for each run."""
