"""`triskele bench`: what a secure round costs beside a plaintext FedAvg round, real processes, measured in one run."""
