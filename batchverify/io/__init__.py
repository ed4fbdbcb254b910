"""File systems and object stores: opening, claiming and reading what lies there."""
