"""ACE-Step v1 (3.5B): linear-attention transformer, mel autoencoder and vocoder."""
