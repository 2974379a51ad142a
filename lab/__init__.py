"""The laboratory: everything that measures Feather, and nothing that serves with it. Never shipped."""
