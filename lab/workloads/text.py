"""Text as token ids, with a tokenizer that is installed and not downloaded."""

from functools import cache

from lab.workloads.lines import replaced


@cache
def _tokenizer():
    try:
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    except ImportError as error:
        raise ImportError(f"data sets of text need mistral_common and sentencepiece ({error}); both come with vLLM") from None
    # Its 32 000 tokens are the vocabulary of every model here (``VOCABULARY``).
    return MistralTokenizer.v1().instruct_tokenizer.tokenizer


def encode(text: str) -> list[int]:
    """Token ids of a text in the first Mistral tokenizer's SentencePiece vocabulary (32 000), without special tokens."""
    return _tokenizer().encode(replaced(text), bos=False, eos=False)
