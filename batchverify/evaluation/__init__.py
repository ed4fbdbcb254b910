"""The evaluation of scores: the identity check, error rates, the summary, drift and gates."""
