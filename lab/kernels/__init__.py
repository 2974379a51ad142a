"""Paged decode attention without an engine: what one batch costs, by who shares blocks with whom and in which row order.

``batch`` and ``pool`` describe the batch and hold its keys and values; ``paged``, ``packed`` and ``merge`` are the Triton kernels,
``triton_attention`` and ``cpu_attention`` put them, or vLLM's CPU operator, behind one call; ``reference`` says what is right and
``check`` holds them all against it.
Nothing here imports vLLM but ``cpu_attention``, and that only when it is made.
"""
