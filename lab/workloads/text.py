"""Text as token ids, with a tokenizer that is installed and not downloaded."""

from functools import cache

from lab.workloads.lines import replaced
from lab.workloads.workload import VOCABULARY


@cache
def _tokenizer():
    try:
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    except ImportError as error:
        raise ImportError(f"data sets of text need mistral_common and sentencepiece ({error}); both come with vLLM") from None
    return MistralTokenizer.v1().instruct_tokenizer.tokenizer


def encode(text: str) -> list[int]:
    """Token ids of a text, without special tokens, by the first Mistral tokenizer's SentencePiece vocabulary: 32 000, folded into those that every
    model has. So texts that begin alike have tokens that begin alike."""
    return [token % VOCABULARY for token in _tokenizer().encode(replaced(text), bos=False, eos=False)]
