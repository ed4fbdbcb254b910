"""What scores say: the identity check, error rates, the summary, drift, gates."""
