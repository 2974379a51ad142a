"""Policies trained beforehand: a Gymnasium environment over the modelled device, and ``python -m lab.train``."""
