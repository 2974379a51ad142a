"""Studies: workloads on an engine, interleaved, told as tidy rows and ratios with their spread."""
