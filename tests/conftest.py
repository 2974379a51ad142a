import os

# vLLM reads these at import: nothing is fetched, and its start-up chatter stays out of the test output.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
