"""The artifact: run the notebooks, gather what they found, write the report."""
