"""The version, said once; `setup.py` reads it here."""

VERSION = "0.1.0"
