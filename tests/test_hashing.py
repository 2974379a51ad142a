import pytest

from feather.hashing import hash_blocks, hash_tokens


def test_hashes_are_cumulative_and_leave_out_the_partial_chunk():
    one, two = hash_tokens(range(10), 4), hash_tokens([*range(8), 99, 99, 99], 4)
    assert len(one) == 2 and one == two
    assert hash_tokens([0, 1, 2, 3, 9, 5, 6, 7], 4)[0] == one[0]
    assert hash_tokens([9, 1, 2, 3, 4, 5, 6, 7], 4)[1] != one[1]
    assert hash_tokens([], 4) == hash_tokens([1, 2, 3], 4) == []


def test_a_hash_depends_on_where_the_chunks_end_only_through_the_prefix():
    assert hash_tokens(range(8), 4)[1] == hash_tokens(range(8), 8)[0] == hash_tokens(range(8), 1)[7]


def test_a_key_changes_the_chunk_that_holds_it_and_all_after():
    plain = hash_tokens(range(12), 4)
    keyed = hash_tokens(range(12), 4, [(5, b"image")])
    assert [one == other for one, other in zip(plain, keyed)] == [True, False, False]
    assert hash_tokens(range(12), 4, [(0, b"adapter")])[0] != plain[0]
    assert hash_tokens(range(12), 4, [(4, b"image")]) != keyed
    assert hash_tokens(range(12), 4, [(12, b"too late")]) == plain


@pytest.mark.parametrize("tokens", [[-1], [2**32], ["a"], [1.5]])
def test_what_is_no_token_id_is_refused(tokens):
    with pytest.raises(ValueError, match="token ids must be integers from 0 to"):
        hash_tokens(tokens, 1)


def test_block_hashes_are_taken_as_they_are():
    blocks = [b"%d" % i for i in range(10)]
    assert hash_blocks(blocks, 16, 64) == [b"3", b"7"]
    assert hash_blocks(blocks, 16, 16) == blocks
    assert hash_blocks(blocks[:3], 16, 64) == []
    for chunk in (24, 8):
        with pytest.raises(ValueError, match="no multiple of the block size 16"):
            hash_blocks(blocks, 16, chunk)
