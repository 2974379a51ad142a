"""Feather in front of several engines: which replica of a Ray Serve deployment takes which request.

``placement`` decides and knows nothing of Ray, ``router`` asks it within Ray Serve.
"""
