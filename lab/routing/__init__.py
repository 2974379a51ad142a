"""Several replicas behind a router: the rules that are compared, modelled replicas with a virtual clock, and real ones on Ray Serve."""
