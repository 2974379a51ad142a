"""Feather in front of several engines: ``placement`` chooses a replica and knows nothing of Ray, ``router`` asks it within Ray Serve."""
