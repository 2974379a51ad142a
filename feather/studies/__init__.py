"""Studies: workloads on a real engine, interleaved, told as tidy rows and ratios with their spread."""

OUT_MARKER = ".made-by-feather"  # stands in every folder of results, so that no other folder is ever cleared
