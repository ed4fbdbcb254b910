"""The network of the published case, the recipe that trains it, and its repair."""
